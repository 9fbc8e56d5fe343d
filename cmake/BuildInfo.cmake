# build_info.hpp is regenerated at every build, so that a row never names a revision it was not built from.
set(MOESCOPE_GENERATED_DIR ${PROJECT_BINARY_DIR}/generated)
add_custom_target(moescope_build_info
  COMMAND ${CMAKE_COMMAND} -DSOURCE_DIR=${PROJECT_SOURCE_DIR} -DOUTPUT=${MOESCOPE_GENERATED_DIR}/build_info_values.hpp
          -DVERSION=${PROJECT_VERSION} -DBUILD_TYPE=${CMAKE_BUILD_TYPE} -DSANITIZE=${MOESCOPE_SANITIZE} -DARCH=${MOESCOPE_ARCH}
          "-DCOMPILER=${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}"
          "-DCUDA_COMPILER=${CMAKE_CUDA_COMPILER_VERSION}"
          -P ${PROJECT_SOURCE_DIR}/cmake/WriteBuildInfo.cmake
  BYPRODUCTS ${MOESCOPE_GENERATED_DIR}/build_info_values.hpp
  VERBATIM)
