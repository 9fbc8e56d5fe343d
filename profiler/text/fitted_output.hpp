#pragma once

#include <cstddef>
#include <ostream>

#include "profiler/text/line_filter.hpp"

namespace moescope {

/// While it lives, lines of a stream that are longer than `width` characters (0: any) come out fitted(), but
/// for those written under Verbatim. A stream that flushed after every piece no longer does.
class FittedOutput {
 public:
  FittedOutput(std::ostream& stream, std::size_t width);
  ~FittedOutput();
  FittedOutput(const FittedOutput&) = delete;
  FittedOutput& operator=(const FittedOutput&) = delete;
  FittedOutput(FittedOutput&&) = delete;
  FittedOutput& operator=(FittedOutput&&) = delete;

 private:
  std::ostream& stream_;
  std::ios_base::fmtflags flags_;
  LineFilter filter_;
};

/// While it lives, whole lines of the stream stay as they are: tables that were asked for with all their
/// columns, and what programs read.
class Verbatim {
 public:
  explicit Verbatim(std::ostream& stream);
  ~Verbatim();
  Verbatim(const Verbatim&) = delete;
  Verbatim& operator=(const Verbatim&) = delete;
  Verbatim(Verbatim&&) = delete;
  Verbatim& operator=(Verbatim&&) = delete;

 private:
  std::ostream& stream_;
};

}  // namespace moescope
