# The files of a room (a folder) are compiled together, a few units a room: what all of them include is read once, and what
# all of them instantiate is made once. docs/developing.md says what that saves, and what it asks of names.
# A unit holds as much source as compiles in a few seconds, so that an edit does not wait for a wing; the sanitizers' tree, which
# is seldom edited in, has larger ones. A new file may move its room's files to other units, and those of no other room.
option(MOESCOPE_UNITY "Compile the files of a room together; OFF is a command for each file, as clang-tidy wants it" ON)
set(MOESCOPE_UNIT_BYTES 60000 CACHE STRING "Bytes of source in a unit of a room, about")
mark_as_advanced(MOESCOPE_UNIT_BYTES)

# moescope_compile_by_rooms(TARGET [ALONE FILE...]): call it when TARGET has its sources. A file with options of its own is
# left alone by CMake. ALONE names those whose options hang on the preset, so that units are the same in all, and those
# that change with every commit.
function(moescope_compile_by_rooms target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "ALONE")
  if(NOT MOESCOPE_UNITY)
    return()
  endif()
  get_target_property(sources ${target} SOURCES)
  list(FILTER sources INCLUDE REGEX "\\.cpp$")
  list(REMOVE_ITEM sources ${arg_ALONE})
  list(TRANSFORM arg_ALONE PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/)
  list(REMOVE_ITEM sources ${arg_ALONE})
  set(rooms "")
  foreach(source ${sources})
    get_filename_component(room ${source} DIRECTORY)
    if(NOT room IN_LIST rooms)
      list(APPEND rooms ${room})
      set(files_${room} "")
      set(bytes_${room} 0)
    endif()
    list(APPEND files_${room} ${source})
    file(SIZE ${source} bytes)
    math(EXPR bytes_${room} "${bytes_${room}} + ${bytes}")
  endforeach()
  foreach(room ${rooms})
    math(EXPR units "(${bytes_${room}} + ${MOESCOPE_UNIT_BYTES} - 1) / ${MOESCOPE_UNIT_BYTES}")
    list(LENGTH files_${room} count)
    list(SORT files_${room})
    file(RELATIVE_PATH name ${CMAKE_CURRENT_SOURCE_DIR} ${room})
    string(MAKE_C_IDENTIFIER "${name}" name)
    set(index 0)
    foreach(file ${files_${room}})
      math(EXPR unit "${index} * ${units} / ${count}")
      set_property(SOURCE ${file} PROPERTY UNITY_GROUP "${name}_${unit}")
      math(EXPR index "${index} + 1")
    endforeach()
  endforeach()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
endfunction()

# moescope_compile_lightly(TARGET): for drivers and texts, where nobody waits for what a better optimised loop would save.
function(moescope_compile_lightly target)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:$<$<CONFIG:Release,RelWithDebInfo>:-O1>$<$<CONFIG:Sanitize>:-O0>>)
endfunction()
