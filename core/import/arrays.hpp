#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/import/reader.hpp"

/// Which array of a file is what, and which of its axes; not for use outside core/import/.
namespace moescope::detail {

/// The name in the file of what people call by many names: "expert_ids", "gates" or "logits". As
/// ImportOptions::keys says, else the one name of those in use that is there. Empty when none is. Throws
/// FileError when several are, or the name asked for is absent.
std::optional<std::string> find_key(const ImportSource& source, const std::string& what,
                                    const ImportOptions& options);
/// The same of the array that a file is for, which must be there: "" is the one array of an .npy.
std::string routing_key(const ImportSource& source, const std::string& what, const ImportOptions& options);
/// Whether its numbers are floating point.
bool is_float(const FileArray& array);
/// "expert_ids u8 [4, 8192, 8], gates f16 [4, 8192, 8]", for messages.
std::string arrays_text(const ArrayFile& file);

/// An array of routing seen as [layers, tokens, last].
struct Layout {
  std::int64_t num_layers = 1;
  std::int64_t num_tokens = 0;
  std::int64_t last = 0;                    ///< K, or experts
  std::array<std::int64_t, 3> stride = {};  ///< elements
  std::string note;                         ///< how the axes were understood

  std::int64_t index(std::int64_t layer, std::int64_t token, std::int64_t k) const {
    return layer * stride[0] + token * stride[1] + k * stride[2];
  }
};
/// `name`: of the array in the file; `last`: what options.axes calls the last axis here, "k" or "experts".
/// `num_numbers`: layer numbers that the file holds, 0 for none. Throws FileError for a shape that can be
/// read in two ways.
Layout find_layout(const ImportSource& source, const std::string& name, const FileArray& array,
                   std::string_view last, const ImportOptions& options, std::int64_t num_numbers);

/// Elements of an array in the layout's order.
template <class T>
std::vector<T> ordered(const std::vector<T>& values, const Layout& layout) {
  if (layout.stride[2] == 1 && layout.stride[1] == layout.last &&
      layout.stride[0] == layout.last * layout.num_tokens) {
    return values;
  }
  std::vector<T> result;
  result.reserve(values.size());
  for (std::int64_t layer = 0; layer < layout.num_layers; ++layer) {
    for (std::int64_t token = 0; token < layout.num_tokens; ++token) {
      for (std::int64_t k = 0; k < layout.last; ++k) {
        result.push_back(values[static_cast<std::size_t>(layout.index(layer, token, k))]);
      }
    }
  }
  return result;
}

/// Layer numbers, num_experts, padding, system that the file says beside its arrays.
void take_statements(const ImportSource& source, RawRouting& routing);
/// How many layer numbers that is.
std::int64_t count_numbers(const ImportSource& source);

}  // namespace moescope::detail
