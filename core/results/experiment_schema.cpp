// The published schema of experiment files, its axes made from the table of fields.
#include <nlohmann/json.hpp>
#include <type_traits>

#include "core/results/experiment.hpp"
#include "core/results/experiment_axes.hpp"

namespace moescope {
namespace {

using OrderedJson = nlohmann::ordered_json;

/// All but the axes: what no table has.
constexpr const char* kFrame = R"json({
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "title": "moescope experiments, version 1",
  "description": "A file for moescope sweep. Every combination of the values of systems, presets, axes and workloads is a point, but axes that zip names together go in step; on each point all schedules run side by side. Written by `moescope schema experiment`.",
  "type": "object",
  "additionalProperties": false,
  "required": ["name"],
  "properties": {
    "name": {"type": "string", "minLength": 1, "description": "names the output directory: letters, digits, - and _"},
    "about": {"type": "string", "description": "the question it answers"},
    "systems": {"$ref": "#/$defs/names", "description": "kinds of layer, default omnimoe; schedules and grid are of omnimoe alone, baselines run baseline_schedules"},
    "presets": {"$ref": "#/$defs/names", "description": "named shapes, as --preset takes them"},
    "workloads": {"$ref": "#/$defs/names", "description": "where tokens and routing come from, as --workload takes them; default gaussian:1"},
    "schedules": {"$ref": "#/$defs/names", "description": "measured side by side on every point; default all but auto"},
    "baseline_schedules": {"$ref": "#/$defs/names", "description": "the same for the baselines among systems, each taking those that it has; default its own"},
    "metrics": {"$ref": "#/$defs/names", "description": "metrics to record; default all"},
    "tuned_on": {"type": "string", "minLength": 1, "description": "a workload: the schedule that auto chooses on it is measured on every point as well, as schedule tuned. What does it lose where the routing has become another?"},
    "axes": {"type": "object", "additionalProperties": false, "description": "a value or a list of values each; named as the options of moescope run. One that a system of the experiment has no use for is refused"},
    "zip": {"type": "array", "description": "lists of axes (of axes, or systems, presets, workloads) whose values go in step", "items": {"type": "array", "minItems": 2, "items": {"type": "string"}}},
    "draw": {"type": "object", "additionalProperties": false, "required": ["count"], "description": "instead of every combination, some drawn at random: a value of every axis for itself, zipped ones in step. One with more experts a token than the grid has is drawn again. --draw-seed takes another seed",
      "properties": {"count": {"type": "integer", "minimum": 1, "description": "points"}, "seed": {"type": "integer", "minimum": 0, "description": "default 0"}}},
    "min_samples": {"type": "integer", "minimum": 2, "description": "samples of each schedule"},
    "max_time_s": {"type": "number", "exclusiveMinimum": 0, "description": "seconds of sampling per point, once the samples are there"},
    "minutes": {"type": "object", "additionalProperties": false, "description": "what the whole sweep is expected to take, by backend: measured on two cores, on one data-centre GPU, modelled on two cores; shown by --dry-run",
      "properties": {"cpu": {"type": "number", "exclusiveMinimum": 0}, "cuda": {"type": "number", "exclusiveMinimum": 0}, "model": {"type": "number", "exclusiveMinimum": 0}}}
  },
  "$defs": {
    "names": {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
    "texts": {"oneOf": [{"type": "string", "minLength": 1}, {"$ref": "#/$defs/names"}]},
    "counts": {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}]}
  }
})json";

}  // namespace

std::string experiment_schema_json() {
  OrderedJson schema = OrderedJson::parse(kFrame);
  OrderedJson axes;
  const ExperimentPoint point;
  detail::for_each_axis(point, [&](const RequestField& field, const auto& value) {
    const bool is_text = std::is_same_v<std::remove_cvref_t<decltype(value)>, std::string>;
    axes[field.key] = {{"$ref", is_text ? "#/$defs/texts" : "#/$defs/counts"}, {"description", field.about}};
  });
  schema["properties"]["axes"]["properties"] = std::move(axes);
  return schema.dump(2) + "\n";
}

}  // namespace moescope
