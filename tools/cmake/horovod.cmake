# Adapt Horovod's CMake files, unedited, to current frameworks. CMake reads this at project(horovod).

# Debug information would make the wheel ten times as large.
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -DNDEBUG")

if(NOT "$ENV{HOROVOD_GPU_OPERATIONS}" STREQUAL "NCCL")
    # Without this Horovod takes any nvcc it finds and fails where nvcc does not suit the compiler.
    set(CMAKE_CUDA_COMPILER NOTFOUND)
    set(CMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit TRUE)

    # Our FindPytorch.cmake comes before Horovod's.
    set(CMAKE_MODULE_PATH "${CMAKE_CURRENT_LIST_DIR}")
endif()

function(horovod_detox_adapt_targets)
    # Gloo needs Horovod's standard of at least 17: its static constants are inline only from there.
    set_target_properties(gloo PROPERTIES CXX_STANDARD 17 EXCLUDE_FROM_ALL TRUE)
    if(TARGET pytorch)
        set_target_properties(pytorch PROPERTIES CXX_STANDARD $ENV{HOROVOD_DETOX_CXX_STANDARD})
    endif()
    if(TARGET tensorflow)
        # The XLA operations need headers that TensorFlow's wheels lack.
        set_source_files_properties("${PROJECT_SOURCE_DIR}/horovod/tensorflow/xla_mpi_ops.cc"
            TARGET_DIRECTORY tensorflow PROPERTIES HEADER_FILE_ONLY TRUE)
    endif()
endfunction()
cmake_language(DEFER CALL horovod_detox_adapt_targets)
