"""Tests that show a bug of the package: pattern of the test's name -> what is wrong.

They are expected to fail, strictly: whoever mends the bug deletes its line here.
"""

from __future__ import annotations

KNOWN_BUGS: dict[str, str] = {
    r"test_at_temperature_zero.*\[softplus\]": "the softplus gate is NaN at infinity, which temperature 0 asks for",
    r"test_cotangents_are_finite.*\[0\.0-softplus\]": "the softplus gate is NaN at infinity",
    r"test_a_maximum_with_zeros_is_a_relu": "only torch.maximum(z, zeros) is a ReLU: others stay hard, silently",
    r"test_attention_written_by_hand.*\[transposed weights-(0.5|3.0)\]": "softer weights are reshaped, not moved",
    r"test_scaled_weights_are_softened_as_they_are_scaled": "softer weights are not scaled with the weights",
    r"test_only_the_value_branch.*\[(plain|no bias|zero token|causal|every head's weights)-unbatched": "projected together"
    "without a batch, where torch projects q, k, v one by one: the last bit differs",
    r"test_runs_may_be_nested": "the run inside calls Tensor._base, which the run outside has no rule for",
    r"test_in_place.py::.*\[what an activation gave, then \+=-guided\]": "a guided activation is a view: no writes",
    r"test_targets_follow_their_samples.*\[(1|2)-target2\]": "lists inside a Contrast do not follow samples",
    r"test_the_derivative.*\[(mish, softplus, tanh|layer norm|group norm|attention|multihead)-(soft|hot|exc|pull)": "what "
    "a rule keeps is differentiated through the rules of the layers below it, and what is detached not at all",
    r"test_the_derivative.*\[elu, leaky-(soft|hot|exc)": "as above: two gates in a row",
    r"test_constants_in_the_network_are_biases\[(padded|filled|chosen)\]": "pad, masked_fill and where write constants "
    "that are counted in no share",
    r"test_layer_norm_written_by_hand.*\[variance": "var has no rule",
}
