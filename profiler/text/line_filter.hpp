#pragma once

#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <string_view>

namespace moescope {

/// While it lives, what a stream is given comes out as `change` makes it: whole lines, the rest of one when
/// the stream is flushed. Filters of one stream end in the reverse order of their beginning.
class LineFilter {
 public:
  using Change = std::function<std::string(std::string_view)>;
  LineFilter(std::ostream& stream, Change change);
  ~LineFilter();
  LineFilter(const LineFilter&) = delete;
  LineFilter& operator=(const LineFilter&) = delete;
  LineFilter(LineFilter&&) = delete;
  LineFilter& operator=(LineFilter&&) = delete;

 private:
  class Buffer;
  void use(std::streambuf* buffer);

  std::ostream& stream_;
  std::unique_ptr<Buffer> buffer_;
};

}  // namespace moescope
