#include "profiler/text/fitted_output.hpp"

#include <string_view>

#include "profiler/text/wrap.hpp"

namespace moescope {
namespace {

/// Where a stream counts the Verbatim objects that live.
int verbatim_index() {
  static const int index = std::ios_base::xalloc();
  return index;
}

}  // namespace

FittedOutput::FittedOutput(std::ostream& stream, std::size_t width)
    : stream_(stream), flags_(stream.flags()), filter_(stream, [&stream, width](std::string_view text) {
        return fitted(text, stream.iword(verbatim_index()) > 0 ? 0 : width);
      }) {
  stream_.unsetf(std::ios_base::unitbuf);
}

FittedOutput::~FittedOutput() {
  stream_.flush();
  stream_.setf(flags_ & std::ios_base::unitbuf);
}

Verbatim::Verbatim(std::ostream& stream) : stream_(stream) { ++stream_.iword(verbatim_index()); }
Verbatim::~Verbatim() { --stream_.iword(verbatim_index()); }

}  // namespace moescope
