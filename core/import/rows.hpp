#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/import/reader.hpp"

/// Rows of routing as several formats have them; not for use outside core/import/.
namespace moescope::detail {

/// Logits of many tokens, [rows, num_experts].
struct LogitRows {
  std::vector<float> logits;
  std::int64_t num_experts = 0;
  std::string name;  ///< of the array, for messages
};
/// Fills ids, gates, ties, top_k, num_experts and gate_mode of `routing`, whose layers and tokens are known,
/// from the K largest logits of each row. Throws InvalidArgument for a K that does not fit, FileError naming
/// layer, token and expert of a logit that is not finite.
void select_rows(const ImportSource& source, const LogitRows& rows, const ImportOptions& options,
                 RawRouting& routing);

/// Ids of a list without axes as [layers, tokens, K]: options.top_k, and options.layers or one layer. By
/// default a token's layers stand side by side, as engines flatten [tokens, layers, K]; options.axes says
/// otherwise. Throws FileError when the list does not divide.
void shape_flat(const ImportSource& source, std::vector<std::int64_t> ids, const ImportOptions& options,
                RawRouting& routing);

}  // namespace moescope::detail
