// From text to JSON: what every reader refuses, and that the place is named.
#include "core/files/json_text.hpp"

#include <gtest/gtest.h>

#include "core/base/error.hpp"
#include "core/files/json_field.hpp"
#include "tests/support/cpu_time.hpp"
#include "tests/support/file_builders.hpp"

namespace moescope {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;
using test::contains;

template <class Json = json>
std::string error_of(const std::string& text, const std::string& within = "") {
  return test::message_of<FileError>([&] { parse_json<Json>(text, {"a.json", within}); });
}

TEST(JsonText, BuildsWhatTheLibraryBuilds) {
  for (
      const std::string text :
      {R"({"b": [1, -2, 3.5, 1e3, 18446744073709551615], "a": {"x": null, "y": [true, false, {}, []]}, "": "é\n"})",
       R"([])", R"("text")", R"(7)", R"( {"a":[[[[[[[1]]]]]]]} )", R"({"a":{"k":1},"b":{"k":2}})"}) {
    EXPECT_EQ(parse_json<json>(text, {"a", ""}), json::parse(text)) << text;
    EXPECT_EQ(parse_json<ordered_json>(text, {"a", ""}).dump(), ordered_json::parse(text).dump()) << text;
  }
}

TEST(JsonText, RefusesDeepNestingByItsPlace) {
  const auto nested = [](int levels) {
    return std::string(static_cast<std::size_t>(levels), '[') +
           std::string(static_cast<std::size_t>(levels), ']');
  };
  EXPECT_NO_THROW(parse_json<json>(nested(kMostJsonLevels), {"a", ""}));
  EXPECT_TRUE(contains(error_of(nested(kMostJsonLevels + 1)), {"a.json: ", "nests deeper than 8 levels"}));
  // What a reader that recursed would pay for with its stack; also where nobody would look at the value.
  for (const std::size_t levels : {std::size_t{1000}, std::size_t{1'000'000}}) {
    const std::string open(levels, '[');
    EXPECT_TRUE(contains(error_of("{\"values\": {\"num_sms\": {\"value\": " + open),
                         {"a.json: values.num_sms.value[0][0]", "nests deeper than 8 levels"}));
    EXPECT_TRUE(contains(error_of<ordered_json>("{\"x\": " + open), {"a.json: x[0]", "nests deeper"}));
    EXPECT_TRUE(contains(error_of("{\"x\": " + open, "line 5"), {"a.json: line 5: x[0]", "nests deeper"}));
  }
}

TEST(JsonText, RefusesAKeyThatStandsTwice) {
  EXPECT_EQ(error_of(R"({"a": 1, "a": 2})"), "a.json: key 'a' stands there twice");
  EXPECT_EQ(error_of(R"({"axes": {"num_tokens": [16], "num_tokens": [32]}})"),
            "a.json: axes: key 'num_tokens' stands there twice");
  EXPECT_EQ(error_of<ordered_json>(R"({"fits": [{}, {"x": 1, "y": 2, "x": 1}]})"),
            "a.json: fits[1]: key 'x' stands there twice");
  EXPECT_EQ(error_of(R"({"a": 1, "\u0061": 2})", "line 3"), "a.json: line 3: key 'a' stands there twice");
}

TEST(JsonText, NamesLineAndColumnOfAMistake) {
  EXPECT_TRUE(contains(error_of("{\n  \"a\": 1,\n}"), {"a.json: line 3, column 1: not valid JSON"}));
  EXPECT_TRUE(contains(error_of("{\"a\": 1", ""), {"a.json: line 1, column 8: not valid JSON"}));
  EXPECT_TRUE(contains(error_of("{\"a\": tru}", "line 7"), {"a.json: line 7: column 10: not valid JSON"}));
  EXPECT_TRUE(contains(error_of(""), {"a.json: line 1, column 1: not valid JSON"}));
  EXPECT_TRUE(contains(error_of("{} {}"), {"a.json: line 1, column 4: not valid JSON"}));
}

TEST(JsonText, NamesWhatIsNoNumber) {
  for (const std::string word : {"NaN", "Infinity", "-Infinity", "nan", "inf"}) {
    EXPECT_TRUE(contains(error_of("{\"value\": " + word + "}"),
                         {word.substr(word[0] == '-' ? 1 : 0) + " is no number"}))
        << error_of("{\"value\": " + word + "}");
  }
  EXPECT_TRUE(contains(error_of("[1e999]"), {"a.json: line 1, column", "1e999"}));
}

TEST(JsonText, RefusesTextThatIsNotUtf8InOneAsciiLine) {
  for (const std::string bytes : {"\xff", "\xc3", "\xed\xa0\x80", "\xf8\x88\x80\x80\x80", "\xc0\xaf"}) {
    const std::string error = error_of("{\"a\": \"" + bytes + "\"}");
    EXPECT_TRUE(contains(error, {"a.json: line 1, column ", "not valid JSON"}));
    for (const char c : error) {
      EXPECT_TRUE(c >= 0x20 && c < 0x7f) << error;
    }
  }
}

TEST(JsonText, TakesTimeInProportionToTheText) {
  std::string text = "{";
  for (int i = 0; i < 300'000; ++i) {
    text += fmt::format("{}\"k{}\": {{\"x\": 1}}", i == 0 ? "" : ",", i);
  }
  text += "}";
  const double start = test::cpu_seconds();
  EXPECT_EQ(parse_json<json>(text, {"a", ""}).size(), 300'000U);
  EXPECT_EQ(parse_json<ordered_json>(text, {"a", ""}).size(), 300'000U);
  // Quadratic it takes minutes; sanitizers cost a factor of ten or so.
  EXPECT_LT(test::cpu_seconds() - start, 30);
}

TEST(JsonField, NamesThePlaceOfWhatDoesNotFit) {
  const auto document =
      json::parse(R"({"fits": [{"stretch": null, "points": 2.5}], "big": 18446744073709551615})");
  const JsonField file(document, "c.json");
  const auto error = [](const auto& action) { return test::message_of<FileError>(action); };
  const JsonField fit = file.member("fits").elements().at(0);
  EXPECT_EQ(error([&] { fit.member("stretch").number(); }),
            "c.json: fits[0].stretch: null: must be a number");
  EXPECT_EQ(error([&] { fit.member("points").integer(); }),
            "c.json: fits[0].points: 2.5: must be a whole number");
  EXPECT_EQ(error([&] { fit.member("kernel"); }), "c.json: fits[0].kernel: missing");
  EXPECT_TRUE(contains(error([&] { file.member("big").integer(); }), {"c.json: big: 18446744073709551615"}));
  EXPECT_TRUE(contains(error([&] { file.member("big").integer(); }), {"whole number"}));
  EXPECT_TRUE(
      contains(error([&] { file.member("fits").members(); }), {"c.json: fits: ", "must be an object"}));
  EXPECT_TRUE(contains(error([&] { fit.elements(); }), {"c.json: fits[0]: ", "must be a list"}));
  EXPECT_EQ(error([&] { JsonField(json::array(), "c.json"); }), "c.json: []: must be an object");
}

}  // namespace
}  // namespace moescope
