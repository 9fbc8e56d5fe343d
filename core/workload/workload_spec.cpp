#include "core/workload/workload.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <cmath>
#include <span>

#include "core/base/error.hpp"
#include "core/base/number_text.hpp"

namespace moescope {
namespace {

using Family = WorkloadSpec::Family;

/// Bounds keep logits finite in fp32 and bf16; they lie far outside what is useful.
struct Parameter {
  std::string_view name;
  double default_value;
  double min;
  double max;
  bool integer = false;
  bool optional = false;  ///< may be left out behind the others; printed only when it is not the default
};

struct FamilyInfo {
  Family family;
  std::string_view name;
  std::span<const Parameter> parameters;
  bool takes_path;
  std::string_view meaning;
};

constexpr std::array kGaussian = {Parameter{"STD", 1, 0, 1e4}};
constexpr std::array kZipf = {Parameter{"S", 1, 0, 100}};
constexpr std::array kHot = {Parameter{"FRACTION", 0.5, 0, 1}, Parameter{"COUNT", 4, 1, 0x1p31, true},
                             Parameter{"BOOST", 8, 0, 1e4, false, true}};
constexpr std::array kClustered = {Parameter{"C", 16, 1, 0x1p31, true}, Parameter{"RHO", 0.9, 0, 1}};
constexpr std::array kDrift = {Parameter{"S", 1, 0, 100}, Parameter{"STEP", 0, 0, 1e9}};

constexpr std::array kFamilies = {
    FamilyInfo{Family::kGaussian, "gaussian", kGaussian, false,
               "row and column logits ~ N(0, STD^2): X ~ N(0, 1), router ~ N(0, STD^2 / d)"},
    FamilyInfo{Family::kZipf, "zipf", kZipf, false,
               "gaussian:1 plus a bias -S ln(rank) on each grid row and column, ranks in random order"},
    FamilyInfo{
        Family::kHot, "hot", kHot, false,
        "FRACTION of the tokens get BOOST (default 8) added to the logits of the same COUNT rows and COUNT "
        "columns; else gaussian:1. hot:1,1: all tokens on the same strips"},
    FamilyInfo{
        Family::kClustered, "clustered", kClustered, false,
        "each token belongs to one of C clusters; logits of two tokens of a cluster correlate by RHO, else "
        "gaussian:1"},
    FamilyInfo{
        Family::kDrift, "drift", kDrift, false,
        "zipf:S whose popularity has moved STEP batches (fractions allowed) on: ranks glide along a ring of "
        "rows and of columns. STEP 0 is zipf:S; after 8 the popular half is the unpopular one, 16 is the "
        "period. Tokens stay the same"},
    FamilyInfo{Family::kUniform,
               "uniform",
               {},
               false,
               "every token draws K distinct experts of all N with equal chance: no grid structure, no "
               "router; gates "
               "from N(0, 1) scores"},
    FamilyInfo{Family::kSnapshot,
               "snapshot",
               {},
               true,
               "a trained layer in safetensors: hidden states and router, with or without expert weights"},
    FamilyInfo{
        Family::kTrace,
        "trace",
        {},
        true,
        "recorded routing (expert_ids [L,K], optional gates) in .npy, .npz or safetensors; random tokens and "
        "weights. Of a trace of several layers, trace:FILE#layer=3 is the model's layer 3, #layer=all one "
        "workload a layer; moescope import makes traces of what engines write"},
};

std::string grammar(const FamilyInfo& info) {
  if (info.takes_path) {
    return fmt::format("{}:FILE", info.name);
  }
  std::string text{info.name};
  for (std::size_t i = 0; i < info.parameters.size(); ++i) {
    const auto& parameter = info.parameters[i];
    text += fmt::format("{}{}{}{}", parameter.optional ? "[" : "", i == 0 ? ":" : ",", parameter.name,
                        parameter.optional ? "]" : "");
  }
  return text;
}

[[noreturn]] void refuse(std::string_view text, const FamilyInfo& info, std::string_view requirement) {
  throw InvalidArgument("workload", text, fmt::format("{}; expected {}", requirement, grammar(info)));
}

const FamilyInfo& find_family(std::string_view name, std::string_view text) {
  std::vector<std::string> known;
  for (const auto& info : kFamilies) {
    if (info.name == name) {
      return info;
    }
    known.push_back(grammar(info));
  }
  throw InvalidArgument("workload", text,
                        fmt::format("unknown family '{}'; expected one of {}", name, fmt::join(known, " ")));
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (true) {
    const auto at = text.find(separator);
    parts.push_back(text.substr(0, at));
    if (at == std::string_view::npos) {
      return parts;
    }
    text.remove_prefix(at + 1);
  }
}

double parse_parameter(std::string_view word, const Parameter& parameter, const FamilyInfo& info,
                       std::string_view text) {
  if (word.empty()) {
    refuse(text, info, fmt::format("{} is missing", parameter.name));
  }
  const auto number = parse_number<double>(word);
  if (!number) {
    refuse(text, info, fmt::format("{} = '{}' {}", parameter.name, word, number_rule<double>()));
  }
  const double value = *number;
  if (value < parameter.min || value > parameter.max) {
    refuse(text, info,
           fmt::format("{} = {} must be in [{}, {}]", parameter.name, value, parameter.min, parameter.max));
  }
  if (parameter.integer && value != std::floor(value)) {
    refuse(text, info, fmt::format("{} = {} must be a whole number", parameter.name, value));
  }
  return value + 0.0;  // -0 becomes 0, so that it prints the same
}

std::vector<double> parse_parameters(std::string_view arguments, const FamilyInfo& info,
                                     std::string_view text) {
  const auto words = split(arguments, ',');
  if (words.size() > info.parameters.size()) {
    refuse(text, info,
           fmt::format("takes at most {} arguments, {} given", info.parameters.size(), words.size()));
  }
  std::vector<double> values;
  for (std::size_t i = 0; i < info.parameters.size(); ++i) {
    const auto& parameter = info.parameters[i];
    if (i >= words.size() && parameter.optional) {
      values.push_back(parameter.default_value);
    } else {
      values.push_back(parse_parameter(i < words.size() ? words[i] : "", parameter, info, text));
    }
  }
  return values;
}

/// "family:arg,arg" in shortest decimals; an optional argument only when it is not the default.
std::string canonical_text(const FamilyInfo& info, const std::vector<double>& values) {
  std::string text{info.name};
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!info.parameters[i].optional || values[i] != info.parameters[i].default_value) {
      text += fmt::format("{}{}", i == 0 ? ':' : ',', values[i]);
    }
  }
  return text;
}

/// What stands behind FILE#: as=any, layer=3, layer=all.
void take_file_options(std::string_view words, const FamilyInfo& info, std::string_view text,
                       WorkloadSpec& spec) {
  for (const std::string_view word : split(words, ',')) {
    if (word == "as=any") {
      spec.any_system = true;
    } else if (info.family == Family::kTrace && word.starts_with("layer=")) {
      const std::string_view number = word.substr(word.find('=') + 1);
      spec.layer = parse_number<std::int64_t>(number);
      spec.all_layers = number == "all";
      if (!spec.all_layers && (!spec.layer || *spec.layer < 0)) {
        refuse(text, info, fmt::format("layer = '{}' must be a number from 0 on, or all", number));
      }
    } else {
      refuse(text, info,
             fmt::format("'{}' behind # must be as=any{}", word,
                         info.family == Family::kTrace ? ", layer=NUMBER or layer=all" : ""));
    }
  }
}

}  // namespace

WorkloadSpec WorkloadSpec::parse(std::string_view text) {
  const auto colon = text.find(':');
  const bool has_arguments = colon != std::string_view::npos;
  const auto& info = find_family(text.substr(0, colon), text);
  const auto arguments = has_arguments ? text.substr(colon + 1) : std::string_view{};

  WorkloadSpec spec;
  spec.family = info.family;
  if (info.takes_path) {
    if (arguments.empty()) {
      refuse(text, info, "FILE is missing");
    }
    spec.path = arguments;
    spec.text = text;
    // A # of a file's own name is followed by no option.
    if (const auto mark = arguments.rfind('#');
        arguments.find('=', std::min(mark, arguments.size())) != std::string_view::npos) {
      take_file_options(arguments.substr(mark + 1), info, text, spec);
      spec.path = arguments.substr(0, mark);
    }
    return spec;
  }
  if (has_arguments) {
    spec.parameters = parse_parameters(arguments, info, text);
  } else {
    for (const auto& parameter : info.parameters) {
      spec.parameters.push_back(parameter.default_value);
    }
  }
  spec.text = canonical_text(info, spec.parameters);
  return spec;
}

std::string workload_help() {
  std::string help;
  for (const auto& info : kFamilies) {
    std::string defaults;
    for (const auto& parameter : info.parameters) {
      defaults += fmt::format("{}{}", defaults.empty() ? " Default " : ",", parameter.default_value);
    }
    help +=
        fmt::format("{:<28}{}.{}{}\n", grammar(info), info.meaning, defaults, defaults.empty() ? "" : ".");
  }
  return help;
}

}  // namespace moescope
