# Find torch as Horovod does, but treat a CUDA build of torch as a CPU build.
include("${PROJECT_SOURCE_DIR}/cmake/Modules/FindPytorch.cmake")
set(Pytorch_CUDA FALSE)
list(FILTER Pytorch_LIBRARIES EXCLUDE REGEX "cuda[^/]*$")
