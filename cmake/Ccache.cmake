# A compiler cache where one is installed. Paths are taken relative to the checkout, so that a fresh clone, and a tree
# with other options for other files, find what was compiled before.
find_program(MOESCOPE_CCACHE ccache)
if(MOESCOPE_CCACHE)
  set(launcher ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${MOESCOPE_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${launcher})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${launcher})
endif()
