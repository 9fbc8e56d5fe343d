find_package(Git QUIET)
set(REVISION "unknown")
set(DIRTY "true")
if(GIT_FOUND)
  execute_process(COMMAND ${GIT_EXECUTABLE} rev-parse HEAD WORKING_DIRECTORY ${SOURCE_DIR}
    OUTPUT_VARIABLE REVISION OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE rc)
  if(NOT rc EQUAL 0)
    set(REVISION "unknown")
  else()
    execute_process(COMMAND ${GIT_EXECUTABLE} status --porcelain --untracked-files=no WORKING_DIRECTORY ${SOURCE_DIR}
      OUTPUT_VARIABLE status OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(status STREQUAL "")
      set(DIRTY "false")
    endif()
  endif()
endif()
set(content "#pragma once
#define MOESCOPE_VERSION \"${VERSION}\"
#define MOESCOPE_GIT_REVISION \"${REVISION}\"
#define MOESCOPE_GIT_DIRTY ${DIRTY}
#define MOESCOPE_BUILD_TYPE \"${BUILD_TYPE}\"
#define MOESCOPE_BUILD_SANITIZE \"${SANITIZE}\"
#define MOESCOPE_BUILD_ARCH \"${ARCH}\"
#define MOESCOPE_COMPILER \"${COMPILER}\"
#define MOESCOPE_CUDA_COMPILER \"${CUDA_COMPILER}\"
#define MOESCOPE_SOURCE_DIR \"${SOURCE_DIR}\"
")
file(CONFIGURE OUTPUT ${OUTPUT} CONTENT "${content}" @ONLY)
