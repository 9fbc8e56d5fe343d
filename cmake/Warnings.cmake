# One INTERFACE target carries warnings, optimisation and sanitizer flags for every moescope target.
add_library(moescope_options INTERFACE)
add_library(moescope::options ALIAS moescope_options)
# What is installed takes its headers along, and leaves warnings and -march to whoever uses it.
target_include_directories(moescope_options INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
  $<INSTALL_INTERFACE:include/moescope>)
target_compile_features(moescope_options INTERFACE $<INSTALL_INTERFACE:cxx_std_20>)
target_compile_options(moescope_options INTERFACE
  $<BUILD_INTERFACE:$<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Wold-style-cast
    -Wunused -Woverloaded-virtual -Wimplicit-fallthrough -Werror -fno-math-errno>>
  $<BUILD_INTERFACE:$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-Wno-unused-parameter,-Werror --Werror=all-warnings --expt-relaxed-constexpr>>)
if(MOESCOPE_ARCH)
  target_compile_options(moescope_options INTERFACE $<BUILD_INTERFACE:$<$<COMPILE_LANGUAGE:CXX>:-march=${MOESCOPE_ARCH}>>)
endif()
if(MOESCOPE_SANITIZE)
  target_compile_options(moescope_options INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${MOESCOPE_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer>)
  target_link_options(moescope_options INTERFACE $<$<LINK_LANGUAGE:CXX>:-fsanitize=${MOESCOPE_SANITIZE}>)
endif()
