#include "core/base/number_text.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "core/base/error.hpp"
#include "core/base/grid_text.hpp"
#include "core/workload/workload.hpp"

namespace moescope {
namespace {

TEST(NumberText, TakesDecimalNumbersWhole) {
  EXPECT_EQ(parse_number<std::int64_t>("0"), 0);
  EXPECT_EQ(parse_number<std::int64_t>("64"), 64);
  EXPECT_EQ(parse_number<std::int64_t>("-7"), -7);
  EXPECT_EQ(parse_number<std::int64_t>("9223372036854775807"), std::numeric_limits<std::int64_t>::max());
  EXPECT_EQ(parse_number<std::uint64_t>("18446744073709551615"), std::numeric_limits<std::uint64_t>::max());
  EXPECT_EQ(parse_number<int>("2147483647"), 2147483647);
  EXPECT_EQ(parse_number<double>("0.05"), 0.05);
  EXPECT_EQ(parse_number<double>("-1.5e-3"), -1.5e-3);
  EXPECT_EQ(parse_number<double>("0e0"), 0.0);
}

TEST(NumberText, RefusesWhatIsReadInTwoWaysOrNotAtAll) {
  for (const char* text : {"", " ", "064", "08", "00", "-01", "0x10", "010", "+5", " 5", "5 ", "5,", "1e3",
                           "1.0", "--5", "-", "٣", "9223372036854775808", "99999999999999999999"}) {
    EXPECT_EQ(parse_number<std::int64_t>(text), std::nullopt) << text;
  }
  for (const char* text : {"", "-1", "-0", "18446744073709551616", "01"}) {
    EXPECT_EQ(parse_number<std::uint64_t>(text), std::nullopt) << text;
  }
  EXPECT_EQ(parse_number<int>("2147483648"), std::nullopt);
  for (const char* text :
       {"", "010", "00.5", "-01.5", "0x1p3", "nan", "inf", "-inf", "1e999", "+0.5", "0,5", "1 "}) {
    EXPECT_EQ(parse_number<double>(text), std::nullopt) << text;
  }
}

TEST(NumberText, HoldsForGridsAndWorkloads) {
  EXPECT_EQ(parse_grid("48x16").rows, 48);
  EXPECT_EQ(parse_grid("48,16").cols, 16);
  for (const char* text :
       {"010x010", "10x010", "x4", "4x", "4", "0x4x4", "4x99999999999999999999", "+4x4", "4x4 "}) {
    EXPECT_THROW(parse_grid(text), InvalidArgument) << text;
  }
  EXPECT_EQ(WorkloadSpec::parse("zipf:1.5").parameters.front(), 1.5);
  for (const char* text :
       {"zipf:010", "zipf:", "zipf:0x1", "zipf:nan", "hot:0.5,016", "gaussian:+1", "drift:1,"}) {
    EXPECT_THROW(WorkloadSpec::parse(text), InvalidArgument) << text;
  }
}

}  // namespace
}  // namespace moescope
