#pragma once

#include <ostream>

#include "profiler/text/line_filter.hpp"

namespace moescope {

/// While it lives, whatever a stream is given comes out as plain_lines(): names in files of rows, workloads
/// and devices are printed in many places, and none of them shall move the cursor, set the title or answer
/// for the user. The colours of tables pass where `colours` says so, and no other code of a terminal.
class PlainOutput {
 public:
  explicit PlainOutput(std::ostream& stream, bool colours = false);

 private:
  LineFilter filter_;
};

}  // namespace moescope
