// Routing in the formats of engines against what NumPy made of the same logits (tests/data/import/make.py).
#include "core/import/import.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "core/files/npy.hpp"
#include "core/workload/trace_file.hpp"
#include "core/workload/workload.hpp"
#include "tests/support/file_builders.hpp"
#include "tests/support/paths.hpp"

namespace moescope {
namespace {

using test::bytes_of;
using test::contains;
using test::message_of;
using test::npy;
using test::zip;

constexpr std::int64_t kExperts = 8;
constexpr std::int64_t kTokens = 16;
constexpr std::int64_t kTopK = 3;

std::filesystem::path data(const std::string& name) { return test::source_path("tests/data/import/" + name); }

/// What NumPy says of the same routing.
const ArrayFile& expected() {
  static const ArrayFile kFile = read_array_file(data("expected.npz"));
  return kFile;
}

std::vector<std::int32_t> expected_ids() {
  const auto ids = expected().get("expected", "ids").to_integers("expected", "ids");
  return {ids.begin(), ids.end()};
}

ImportOptions with_experts() {
  ImportOptions options;
  options.num_experts = kExperts;
  return options;
}

/// Largest difference from a float64 array of NumPy's.
double distance(const std::vector<float>& ours, const std::string& name) {
  const std::vector<float> theirs = expected().get("expected", name).to_floats("expected", name);
  EXPECT_EQ(ours.size(), theirs.size()) << name;
  double most = 0;
  for (std::size_t i = 0; i < std::min(ours.size(), theirs.size()); ++i) {
    most = std::max(most, std::abs(static_cast<double>(ours[i]) - static_cast<double>(theirs[i])));
  }
  return most;
}

/// Each row's ids in ascending order.
std::vector<std::int32_t> sorted_rows(std::vector<std::int32_t> ids) {
  for (auto row = ids.begin(); row != ids.end(); row += kTopK) {
    std::sort(row, row + kTopK);
  }
  return ids;
}

TEST(ImportLogits, SelectsWhatNumPySelectsAndCountsTies) {
  for (const auto& [mode, name] :
       {std::pair(ScoreMode::kSoftmax, "softmax"), std::pair(ScoreMode::kProbability, "probability"),
        std::pair(ScoreMode::kSigmoid, "sigmoid"),
        std::pair(ScoreMode::kSigmoidNormalised, "sigmoid_normalised")}) {
    ImportOptions options;
    options.top_k = kTopK;
    options.axes = "layers,tokens,experts";
    options.scores = mode;
    const ImportedTrace imported = import_trace({data("logits.npz")}, options);
    EXPECT_EQ(imported.trace.expert_ids, expected_ids());
    EXPECT_EQ(imported.trace.num_experts, kExperts);
    EXPECT_EQ(imported.trace.gate_mode, name);
    EXPECT_LT(distance(imported.trace.gates, name), 1e-7) << name;
    const auto tied = expected().get("expected", "tied_rows").to_integers("expected", "tied_rows").front();
    EXPECT_EQ(std::ssize(imported.ties), tied);
    EXPECT_GT(tied, 3);  // the logits are coarse on purpose
  }
}

TEST(ImportLogits, EqualToRecordedRoutingButForTies) {
  ImportOptions options;
  options.top_k = kTopK;
  options.axes = "layers,tokens,k";
  options.layers = {1, 3};
  const ImportedTrace imported = import_trace({data("logits.npz")}, options);
  LayeredTrace other = import_trace({data("layers_first.npz")}, with_experts()).trace;
  TraceComparison same = compare_traces(imported, other);
  EXPECT_EQ(same.rows, 2 * kTokens);
  EXPECT_EQ(same.equal, same.rows);
  // Another expert of the same logit is no other selection; one of another logit is.
  const std::int64_t row = imported.ties.begin()->first;
  const auto& tied = imported.ties.begin()->second;
  auto* const ids = other.expert_ids.data() + row * kTopK;
  const auto taken = std::find_if(ids, ids + kTopK,
                                  [&](std::int32_t id) { return std::ranges::find(tied, id) != tied.end(); });
  const auto left = std::ranges::find_if(
      tied, [&](std::int32_t id) { return std::find(ids, ids + kTopK, id) == ids + kTopK; });
  *taken = *left;
  same = compare_traces(imported, other);
  EXPECT_EQ(same.equal_but_ties, 1);
  EXPECT_EQ(same.different, 0);
  std::int32_t stranger = 0;
  while (std::find(ids, ids + kTopK, stranger) != ids + kTopK ||
         std::ranges::find(tied, stranger) != tied.end()) {
    ++stranger;
  }
  *taken = stranger;
  same = compare_traces(imported, other);
  EXPECT_EQ(same.different, 1);
  EXPECT_TRUE(contains(same.first_different, {"layer ", "token ", " here, ", " there"}));
}

TEST(ImportLogits, NameWhatIsNotFiniteAndNeedATopK) {
  const test::TempFolder folder;
  const std::string file =
      folder.write("l.npy", npy("<f4", "(2, 3)", bytes_of<float>({1, 2, 3, 4, std::nanf(""), 6})));
  EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { import_trace({file}, {}); }),
                       {"top_k = none: ", "logits of 3 experts"}));
  ImportOptions options;
  options.top_k = 4;
  EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { import_trace({file}, options); }),
                       {"top_k = 4: must be in [1, 3]"}));
  options.top_k = 2;
  EXPECT_TRUE(contains(message_of<FileError>([&] { import_trace({file}, options); }),
                       {"array[layer 0, token 1, expert 1]: nan: must be finite"}));
}

TEST(ImportIds, ReadBothOrdersOfAxesAndSayWhich) {
  const ImportedTrace first = import_trace({data("layers_first.npz")}, with_experts());
  EXPECT_EQ(first.trace.expert_ids, expected_ids());
  EXPECT_EQ(first.trace.layers, (std::vector<std::int64_t>{1, 3}));
  EXPECT_LT(distance(first.trace.gates, "softmax"), 1e-7);
  EXPECT_TRUE(contains(first.notes.at(1), {"2 layers, 16 tokens, k 3", "numbers 2 layers"}));
  const ImportedTrace vllm = import_trace({data("routed_experts.npz")}, with_experts());
  EXPECT_EQ(vllm.trace.expert_ids, expected_ids());
  EXPECT_TRUE(contains(vllm.notes.at(1), {"2 layers, 16 tokens, k 3", "vLLM and SGLang"}));
  EXPECT_EQ(vllm.trace.layers, (std::vector<std::int64_t>{0, 1}));
}

TEST(ImportIds, RefuseAShapeThatCanBeReadInTwoWays) {
  const test::TempFolder folder;
  const std::string file = folder.write(
      "i.npz",
      zip({{"expert_ids.npy", npy("<i4", "(2, 2, 2)", bytes_of<std::int32_t>({0, 1, 2, 3, 1, 0, 3, 2}))}}));
  ImportOptions options = with_experts();
  EXPECT_TRUE(contains(message_of<FileError>([&] { import_trace({file}, options); }),
                       {"expert_ids: shape [2, 2, 2]: may be 2 layers of 2 tokens or the other way round",
                        "--axes layers,tokens,k"}));
  options.axes = "tokens,layers,k";
  EXPECT_EQ(import_trace({file}, options).trace.expert_ids,
            (std::vector<std::int32_t>{0, 1, 1, 0, 2, 3, 3, 2}));
  options.axes = "k,tokens,layers";
  // [k, tokens, layers]: layer 0 has ids 0, 2 | 1, 3 of k = 0 | 1.
  EXPECT_EQ(import_trace({file}, options).trace.expert_ids,
            (std::vector<std::int32_t>{0, 1, 2, 3, 1, 0, 3, 2}));
  options.axes = "layers,k";
  EXPECT_TRUE(
      contains(message_of<InvalidArgument>([&] { import_trace({file}, options); }), {"axes = layers,k: "}));
}

TEST(ImportIds, TakeOtherNamesByKeyAndSayWhatIsThere) {
  const test::TempFolder folder;
  const std::string ids = npy("<i2", "(2, 2)", bytes_of<std::int16_t>({0, 1, 3, 2}));
  const std::string file = folder.write("k.npz", zip({{"mine.npy", ids}}));
  EXPECT_TRUE(contains(message_of<FileError>([&] { import_trace({file}, with_experts()); }),
                       {"expert_ids: ", "mine i16 [2, 2]", "--key expert_ids=NAME"}));
  ImportOptions options = with_experts();
  options.keys["expert_ids"] = "mine";
  EXPECT_EQ(import_trace({file}, options).trace.expert_ids, (std::vector<std::int32_t>{0, 1, 3, 2}));
  options.keys["expert_ids"] = "yours";
  EXPECT_TRUE(
      contains(message_of<FileError>([&] { import_trace({file}, options); }), {"yours: is not there"}));
  const std::string two = folder.write("t.npz", zip({{"topk_ids.npy", ids}, {"indices.npy", ids}}));
  EXPECT_TRUE(contains(message_of<FileError>([&] { import_trace({two}, with_experts()); }),
                       {"expert_ids: may be any of topk_ids, indices"}));
}

TEST(ImportIds, NameTheFirstBadIdWithItsPlace) {
  const test::TempFolder folder;
  const auto error = [&](const std::vector<std::int64_t>& ids, const ImportOptions& options) {
    const std::string file = folder.write("b.npy", npy("<i8", "(2, 2)", bytes_of(ids)));
    return message_of<FileError>([&] { import_trace({file}, options); });
  };
  EXPECT_TRUE(contains(error({0, 1, 8, 2}, with_experts()),
                       {"expert_ids[layer 0, token 1, position 0]: 8: must be in [0, 8)"}));
  EXPECT_TRUE(contains(error({0, 1, -1, 2}, with_experts()), {"-1: must be in [0, 8)", "--padding -1"}));
  EXPECT_TRUE(contains(error({0, 1, 2, 2}, with_experts()),
                       {"[layer 0, token 1, position 1]: 2: stands there twice"}));
  EXPECT_TRUE(contains(error({0, 1, std::int64_t{1} << 40, 2}, with_experts()),
                       {"1099511627776", "--format packed"}));
  ImportOptions options = with_experts();
  options.padding = -1;
  EXPECT_TRUE(contains(error({0, 1, -1, 2}, options), {"1 of 2 are padding"}));
  EXPECT_TRUE(contains(error({-1, -1, -1, -1}, options), {"num_tokens: 0"}));
  const std::string none = folder.write("n.npy", npy("<i8", "(1, 2)", bytes_of<std::int64_t>({5, 2})));
  EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { import_trace({none}, {}); }),
                       {"num_experts = none: ", "the largest id is 5"}));
}

TEST(ImportIds, LeaveTokensOfPaddingOutWhereTheFileSaysSo) {
  const test::TempFolder folder;
  const std::string ids = npy("<i4", "(2, 3, 1)", bytes_of<std::int32_t>({0, -1, 2, 3, -1, 1}));
  const std::string layers = npy("<i8", "(2,)", bytes_of<std::int64_t>({4, 7}));
  const std::string padding = npy("<i8", "()", bytes_of<std::int64_t>({-1}));
  const std::string file =
      folder.write("p.npz", zip({{"expert_ids.npy", ids}, {"layers.npy", layers}, {"padding.npy", padding}}));
  const ImportedTrace imported = import_trace({file}, with_experts());
  EXPECT_EQ(imported.trace.expert_ids, (std::vector<std::int32_t>{0, 2, 3, 1}));
  EXPECT_EQ(imported.trace.num_tokens, 2);
  EXPECT_TRUE(contains(imported.notes.back(), {"1 of 3 tokens are padding (-1)"}));
}

TEST(ImportFlat, SplitsAListByTopKAndLayers) {
  ImportOptions options = with_experts();
  EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { import_trace({data("flat.bin")}, options); }),
                       {"top_k = none: ", "96 ids without axes"}));
  options.top_k = kTopK;
  options.layers = {0, 1};
  EXPECT_EQ(import_trace({data("flat.bin")}, options).trace.expert_ids, expected_ids());
  options.layers = {0, 1, 2, 3, 4};
  EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { import_trace({data("flat.bin")}, options); }),
                       {"no multiple of 5 layers"}));
}

TEST(ImportPacked, TakesIdsAndWeightsApart) {
  ImportOptions options = with_experts();
  options.axes = "layers,tokens,k";
  EXPECT_TRUE(contains(message_of<FileError>([&] { import_trace({data("packed.npy")}, options); }),
                       {"--format packed"}));
  options.format = "packed";
  const ImportedTrace imported = import_trace({data("packed.npy")}, options);
  EXPECT_EQ(imported.trace.expert_ids, expected_ids());
  EXPECT_LT(distance(imported.trace.gates, "softmax"), 1.0 / 256);  // rounded to bfloat16
  EXPECT_GT(distance(imported.trace.gates, "softmax"), 1e-5);
  const test::TempFolder folder;
  const std::string file = folder.write("n.npy", npy("<i4", "(1, 1)", bytes_of<std::int32_t>({0x00017fc0})));
  options.axes.clear();
  EXPECT_TRUE(contains(message_of<FileError>([&] { import_trace({file}, options); }),
                       {"element 0: 0x00017fc0", "nan"}));
}

TEST(ImportCsv, GroupsTheRowsOfALayer) {
  ImportOptions options = with_experts();
  EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { import_trace({data("rows.csv")}, options); }),
                       {"top_k = none: ", "no column that says where a token ends"}));
  options.top_k = kTopK;
  const ImportedTrace imported = import_trace({data("rows.csv")}, options);
  EXPECT_EQ(imported.trace.expert_ids, expected_ids());
  EXPECT_TRUE(imported.trace.gates.empty());
}

TEST(ImportCsv, TakesTokensAndWeightsFromTheirColumns) {
  const test::TempFolder folder;
  const std::string file =
      folder.write("c.csv",
                   "# a trace\nphase,token,layer,rank,expert,weight\np,0,5,0,7,0.75\np,0,5,1,2,0.25\n"
                   "d,1,5,0,1,0.5\nd,1,5,1,0,0.5\n");
  const ImportedTrace imported = import_trace({file}, with_experts());
  EXPECT_EQ(imported.trace.top_k, 2);
  EXPECT_EQ(imported.trace.layers, (std::vector<std::int64_t>{5}));
  EXPECT_EQ(imported.trace.expert_ids, (std::vector<std::int32_t>{7, 2, 1, 0}));
  EXPECT_EQ(imported.trace.gates, (std::vector<float>{0.75F, 0.25F, 0.5F, 0.5F}));
}

TEST(ImportCsv, NamesTheLineOfWhatIsWrong) {
  const test::TempFolder folder;
  ImportOptions options = with_experts();
  options.top_k = 1;
  const auto error = [&](const std::string& text) {
    const std::string file = folder.write("c.csv", text);
    return message_of<FileError>([&] { import_trace({file}, options); });
  };
  EXPECT_TRUE(
      contains(error("layer_id,expert_id,count\n0,1,5\n"), {"line 1", "which tokens took them is lost"}));
  EXPECT_TRUE(contains(error("a,b\n"), {"line 1", "layer and expert are needed"}));
  EXPECT_TRUE(
      contains(error("layer,expert,weight,score\n0,1,0.1,0.9\n"), {"line 1", "columns weight and score"}));
  EXPECT_TRUE(contains(error("layer,expert,expert\n0,1,2\n"), {"line 1", "columns expert and expert"}));
  EXPECT_TRUE(contains(error("layer,expert\n0,1\n0,x\n"), {"line 3: expert = 'x'"}));
  EXPECT_TRUE(contains(error("layer,expert\n0,1,2\n"), {"line 2", "has 3 columns, the header 2"}));
  EXPECT_TRUE(contains(error("layer,expert\n-1,1\n"), {"line 2: layer = -1"}));
  EXPECT_TRUE(contains(error("layer,expert\n0,1\n0,2\n1,1\n"), {"layer 1: 1 rows, layer 0 has 2"}));
  EXPECT_TRUE(contains(error("layer,expert\n"), {"holds no rows"}));
}

TEST(ImportMegatron, JoinsRanksAndStepsAndTakesGatesFromTheLogits) {
  const ImportedTrace imported = import_trace({data("megatron")}, {});
  EXPECT_EQ(imported.trace.layers, (std::vector<std::int64_t>{4, 5}));
  EXPECT_EQ(imported.trace.num_experts, kExperts);
  // By step, then rank: tokens 0-4, 8-12, 5-7, 13-15.
  std::vector<std::int32_t> wanted;
  const std::vector<std::int32_t> ids = sorted_rows(expected_ids());
  for (std::int64_t layer = 0; layer < 2; ++layer) {
    for (const auto& [first, last] :
         {std::pair(0, 5), std::pair(8, 13), std::pair(5, 8), std::pair(13, 16)}) {
      const auto row = ids.begin() + layer * kTokens * kTopK;
      wanted.insert(wanted.end(), row + first * kTopK, row + last * kTopK);
    }
  }
  EXPECT_EQ(imported.trace.expert_ids, wanted);
  for (std::size_t row = 0; row < imported.trace.gates.size(); row += kTopK) {
    EXPECT_NEAR(imported.trace.gates[row] + imported.trace.gates[row + 1] + imported.trace.gates[row + 2], 1,
                1e-6);
  }
  EXPECT_TRUE(contains(imported.notes.at(1), {"8 records of block decoder", "4 records of block mtp0"}));
  EXPECT_TRUE(contains(imported.notes.at(2), {"their top 3 in 32 of 32 rows"}));
  ImportOptions mtp = with_experts();
  mtp.block = "mtp0";
  EXPECT_EQ(import_trace({data("megatron")}, mtp).trace.num_tokens, 4);
}

TEST(ImportMegatron, NamesTheLineOfARecordThatDoesNotFit) {
  const test::TempFolder folder;
  const std::string good =
      R"({"step": 0, "layer": 1, "rank": 0, "num_tokens": 1, "topk": 2, "top_indices": [[0, 1]]})";
  const auto error = [&](const std::string& text) {
    const std::string file = folder.write("router_trace_rank0.jsonl", text);
    return message_of<FileError>([&] { import_trace({file}, with_experts()); });
  };
  EXPECT_TRUE(contains(error(good + "\n" + good + "\n"), {"line 2", "stands there twice"}));
  EXPECT_TRUE(contains(
      error(R"({"step": 0, "layer": 1, "rank": 0, "num_tokens": 2, "topk": 2, "top_indices": [[0, 1]]})"),
      {"line 1: top_indices: 1 rows, num_tokens is 2"}));
  EXPECT_TRUE(contains(
      error(R"({"step": 0, "layer": 1, "rank": 0, "num_tokens": 1, "topk": 3, "top_indices": [[0, 1]]})"),
      {"line 1: top_indices[0]", "must be topk = 3 experts"}));
  EXPECT_TRUE(contains(
      error(R"({"step": 0, "layer": 1, "rank": 0, "num_tokens": 1, "topk": 2, "top_indices": [[0, 1e9]]})"),
      {"line 1: top_indices[0][1]"}));
  EXPECT_TRUE(contains(
      error(R"({"step": 0, "layer": 1, "rank": 0, "num_tokens": 1, "topk": 2, "top_indices": [[0, 1]],)"
            R"( "logit_offset": 8, "logit_bytes": 16, "logit_shape": [1, 8]})"),
      {"logits_rank0.bin: no such file"}));
  folder.write("logits_rank0.bin", std::string(16, '\0'));
  EXPECT_TRUE(contains(
      error(R"({"step": 0, "layer": 1, "rank": 0, "num_tokens": 1, "topk": 2, "top_indices": [[0, 1]],)"
            R"( "logit_offset": 8, "logit_bytes": 16, "logit_shape": [1, 8]})"),
      {"logits_rank0.bin: has 16 bytes", "16 at 8"}));
  EXPECT_TRUE(contains(
      error(
          good + "\n" +
          R"({"step": 0, "layer": 2, "rank": 0, "num_tokens": 2, "topk": 2, "top_indices": [[0, 1], [2, 3]]})"),
      {"layer 2: its steps have other tokens"}));
}

TEST(ImportRouterTrace, ReadsTokensLayersExperts) {
  const ImportedTrace imported = import_trace({data("router_trace.json")}, {});
  EXPECT_EQ(imported.trace.expert_ids, expected_ids());
  EXPECT_EQ(imported.trace.num_experts, kExperts);
  const test::TempFolder folder;
  const auto error = [&](const std::string& text) {
    const std::string file = folder.write("r.json", text);
    return message_of<FileError>([&] { import_trace({file}, with_experts()); });
  };
  EXPECT_TRUE(contains(error(R"({"selections": [[[0], [1]], [[2]]]})"),
                       {"selections[1]", "must be a list of 2 layers"}));
  EXPECT_TRUE(
      contains(error(R"({"selections": [[[0], [1, 2]]]})"), {"selections[0][1]", "must be 1 experts"}));
  EXPECT_TRUE(contains(error(R"({"selections": []})"), {"selections", "must hold a token"}));
  EXPECT_TRUE(
      contains(error(R"({"layers": 3, "selections": [[[0], [1]]]})"), {"layers: 3: selections have 2"}));
  EXPECT_TRUE(contains(error(R"({"selections": [[[0.5]]]})"), {"selections[0][0][0]: 0.5"}));
}

TEST(Import, SaysWhatItKnowsOfFilesThatAreNothing) {
  const test::TempFolder folder;
  EXPECT_TRUE(contains(message_of<FileError>([&] { import_trace({folder.write("x.parquet", "PAR1")}, {}); }),
                       {"is of no format that is known here", "PAR1", "Parquet"}));
  EXPECT_TRUE(contains(message_of<FileError>([&] { import_trace({folder.path("")}, {}); }),
                       {"a folder without router_trace_rank*.jsonl"}));
  ImportOptions options;
  options.format = "tables";
  EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { import_trace({data("rows.csv")}, options); }),
                       {"format = tables: must be one of ids, logits"}));
}

TEST(Import, PutsTheLayersOfSeveralFilesSideBySide) {
  const test::TempFolder folder;
  const auto one = [&](const char* name, std::int64_t layer, const std::vector<std::int32_t>& ids) {
    return folder.write(name,
                        zip({{"indices.npy", npy("<i4", "(2, 1)", bytes_of(ids))},
                             {"layer.npy", npy("<i8", "(2,)", bytes_of<std::int64_t>({layer, layer}))}}));
  };
  const ImportedTrace imported =
      import_trace({one("a.npz", 3, {0, 1}), one("b.npz", 9, {2, 3})}, with_experts());
  EXPECT_EQ(imported.trace.layers, (std::vector<std::int64_t>{3, 9}));
  EXPECT_EQ(imported.trace.expert_ids, (std::vector<std::int32_t>{0, 1, 2, 3}));
  EXPECT_TRUE(contains(message_of<FileError>([&] {
                         import_trace({one("a.npz", 3, {0, 1}), one("b.npz", 3, {2, 3})}, with_experts());
                       }),
                       {"layers: 3: stands there twice"}));
}

}  // namespace
}  // namespace moescope
