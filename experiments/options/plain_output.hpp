#pragma once

#include <memory>
#include <ostream>

namespace moescope {

/// While it lives, whatever a stream is given comes out as plain_lines(): names in files of rows, workloads
/// and devices are printed in many places, and none of them shall move the cursor, set the title or answer
/// for the user. Lines are passed on whole, the rest of one when the stream is flushed. The colours of tables
/// pass where `colours` says so, and no other code of a terminal.
class PlainOutput {
 public:
  explicit PlainOutput(std::ostream& stream, bool colours = false);
  ~PlainOutput();
  PlainOutput(const PlainOutput&) = delete;
  PlainOutput& operator=(const PlainOutput&) = delete;
  PlainOutput(PlainOutput&&) = delete;
  PlainOutput& operator=(PlainOutput&&) = delete;

 private:
  class Filter;
  std::ostream& stream_;
  std::unique_ptr<Filter> filter_;
};

}  // namespace moescope
