#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/layer/dtype.hpp"
#include "core/layer/routing.hpp"
#include "core/ranks/placement.hpp"
#include "core/schedule/rank_options.hpp"

namespace moescope {

/// The rank that each token comes from and returns to, tokens dealt out in order: [L].
std::vector<std::int32_t> consecutive_homes(std::int64_t num_tokens, const RankGroup& group);
/// Homes that the placement's specification asks for: consecutive, or by token groups.
std::vector<std::int32_t> homes_of(const ExpertPlacement& placement, const Routing& routing);

/// Which rank computes each pair of a routing: [M], in CSR order. A pair whose home holds its expert stays
/// there; another goes to the holder, of several to each in turn by token. Of strips, pairs go with the
/// strips that cover the token (strip_pairs.hpp). Deterministic.
std::vector<std::int32_t> assign_pairs(const ExpertPlacement& placement, const Routing& routing,
                                       std::span<const std::int32_t> home);

/// What every rank sends to every other for one batch, as data. A *job* is a token with its pairs on one
/// rank; jobs are sorted by (home, rank that computes, token).
struct ExchangePlan {
  Exchange exchange = Exchange::kGather;
  RankGroup group;
  std::int64_t num_tokens = 0;
  std::vector<std::int32_t> home;          ///< [L]
  std::vector<std::int64_t> job_offsets;   ///< [P*P+1]: jobs from home h to rank r are those at h * P + r
  std::vector<std::int32_t> job_tokens;    ///< [J]
  std::vector<std::int64_t> pair_offsets;  ///< [J+1]
  std::vector<std::int64_t> pair_ids;      ///< [M] CSR indices; ascending in a job

  std::int64_t num_jobs() const { return static_cast<std::int64_t>(job_tokens.size()); }
  std::int64_t link(std::int64_t from, std::int64_t to) const { return from * group.ranks + to; }
  /// Jobs of home `from` on rank `to`.
  std::int64_t jobs(std::int64_t from, std::int64_t to) const;
  std::int64_t pairs(std::int64_t from, std::int64_t to) const;
  /// Tokens at home on each rank: [P].
  std::vector<std::int64_t> tokens_per_rank() const;
  /// Pairs that each rank computes: [P].
  std::vector<std::int64_t> pairs_per_rank() const;
};

ExchangePlan plan_exchange(Exchange exchange, const ExpertPlacement& placement, const Routing& routing,
                           std::vector<std::int32_t> home);

/// Checks every invariant and throws InternalError with the first violation: each pair in exactly one job, on
/// a rank that holds its expert, with the token it is of, from that token's home; offsets monotone, tokens of
/// a link ascending.
void validate(const ExchangePlan& plan, const ExpertPlacement& placement, const Routing& routing);

/// Bytes that travel for one row and one pair.
struct ExchangeSizes {
  std::int64_t row = 0;   ///< of X
  std::int64_t back = 0;  ///< of the partial sum that returns
  std::int64_t head = 0;  ///< beside a row of X: what tells which token it is, and how many pairs it has
  std::int64_t pair = 0;  ///< expert and gate

  /// X and sums in storage dtype; an expert in 4 bytes, a gate in 4; a token's number in 4, which a gather
  /// needs not, and its count of pairs in 4.
  static ExchangeSizes of(Exchange exchange, std::int64_t hidden_size, Dtype dtype);
};

/// Bytes from every rank to every other, nothing from a rank to itself: [P*P], sender * P + receiver.
struct LinkBytes {
  RankGroup group;
  std::vector<std::int64_t> dispatch;  ///< X and pairs, from homes
  std::vector<std::int64_t> combine;   ///< sums, back to homes

  std::int64_t total() const;
  /// Between ranks of different nodes.
  std::int64_t between_nodes() const;
  /// The most that one rank sends or receives, the larger of both, both directions of the exchange added.
  std::int64_t busiest_rank() const;
};
LinkBytes link_bytes(const ExchangePlan& plan, const ExchangeSizes& sizes);

}  // namespace moescope
