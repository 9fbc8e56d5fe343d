#pragma once

#include <string_view>

namespace moescope {

/// Opens what is closed of descriptors 0 to 2 on /dev/null: else the next file to be opened takes the number,
/// and what is meant for a terminal goes into it. Call it first. Throws FileError.
void open_standard_streams();

/// Throws FileError("standard output", ...) unless all that was written to std::cout got where it goes.
void flush_standard_output();

/// "moescope: <message>" on standard error, as one line.
void print_error(std::string_view message);

}  // namespace moescope
