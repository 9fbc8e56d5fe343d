#pragma once

#include <string>
#include <string_view>

namespace moescope {

/// Text for HTML, between tags or inside an attribute in double quotes: it is shown as it is, control
/// characters by their codes.
std::string html_text(std::string_view text);

}  // namespace moescope
