#pragma once

#include <string>
#include <vector>

#include "profiler/simulator/sim_layer.hpp"
#include "profiler/simulator/system_bound.hpp"
#include "profiler/text/table.hpp"

/// The paper's system figures (arXiv 2602.05711v2, measured on an A100) beside the simulator's.
namespace moescope {

/// What the simulator says of the paper's shapes (4096 tokens, Table A) on one device.
struct PaperModel {
  LayerShape shape;  ///< K = 512, with the shared MLP
  LayerModel token_centric;
  LayerModel expert_centric;
  LayerModel staircase;
  LayerModel without_shared;  ///< expert_centric
  LayerModel peer_gather;     ///< token_centric at PEER's K, without shared MLP
  SystemShape peer;
  double peer_bound_s = 0;
  double deepseekmoe_bound_s = 0;
  double full_router_bound_s = 0;
  DeviceSpec device;
};

/// One figure of the paper.
struct PaperLine {
  std::string figure;
  std::string paper;
  std::string model;
  double ratio = 0;   ///< model over paper
  std::string means;  ///< what the model's figure is: simulated, a bound, arithmetic
};
std::vector<PaperLine> paper_lines(const PaperModel& model);

Table paper_table(const std::vector<PaperLine>& lines);

}  // namespace moescope
