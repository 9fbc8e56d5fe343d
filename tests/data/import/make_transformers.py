"""Makes the folders transformers_*/ beside it: random models as transformers saves them, with what layer 1 was given
(hidden.npy) and gave (y.npy) in PyTorch, float32, and the logits of every layer. Recorded with transformers 4.46.3 and
torch 1.13."""

import numpy as np
import torch
from transformers import MixtralConfig, MixtralForCausalLM, OlmoeConfig, OlmoeForCausalLM

SHAPE = dict(vocab_size=8, hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
             num_key_value_heads=2, initializer_range=0.3)


def record(name, model):
    folder = f"transformers_{name}"
    model = model.eval()
    logits, inputs, outputs = {}, {}, {}
    for layer, block in enumerate(model.model.layers):
        moe = getattr(block, "block_sparse_moe", None) or block.mlp

        def keep(module, args, output, layer=layer):
            inputs[layer] = args[0][0].numpy()
            outputs[layer] = output[0][0].numpy()
            logits[layer] = output[1].numpy()

        moe.register_forward_hook(keep)
    with torch.no_grad():
        model(input_ids=torch.randint(0, 8, (1, 24)))
    model.save_pretrained(folder, max_shard_size="12KB", safe_serialization=True)
    np.save(f"{folder}/hidden.npy", inputs[1])
    np.save(f"{folder}/y.npy", outputs[1])
    np.save(f"{folder}/router_logits.npy", np.stack([logits[0], logits[1]]))


torch.manual_seed(0)
record("mixtral", MixtralForCausalLM(MixtralConfig(num_local_experts=6, num_experts_per_tok=2, **SHAPE)))
record("olmoe", OlmoeForCausalLM(OlmoeConfig(num_experts=6, num_experts_per_tok=3, **SHAPE)))
