# Loaded by way of the environment variable CMAKE_TOOLCHAIN_FILE, before Horovod's own lines.
set(CMAKE_PROJECT_horovod_INCLUDE "${CMAKE_CURRENT_LIST_DIR}/horovod.cmake")
