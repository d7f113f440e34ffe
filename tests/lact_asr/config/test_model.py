"""Model settings: what cannot work is refused with a reason."""

import pytest

from lact_asr.config.model import SIZES, named_size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_heads": 5}, "hidden 144 is not a multiple of attention_heads"),
        ({"lact_heads": 7}, "hidden 144 is not a multiple of lact_heads"),
        ({"attention_heads": 48}, "must be even"),
        ({"fast_width": 0.001}, "no inner channel"),
        ({"subsampling": 8}, "needs 3 conv_layers"),
        ({"schedule": "apply_then_update"}, "needs a chunk"),
        ({"chunk": 64}, "takes no chunk"),
        ({"momentum": True}, "nothing to carry"),
        ({"schedule": "apply_then_update", "chunk": 200}, "window 128 is shorter than chunk 200"),
        ({"hiden": 3}, "hiden"),
    ],
)
def test_a_configuration_that_cannot_work_says_why(changes, message):
    with pytest.raises(ValueError, match=message):
        named_size("tiny", changes)


def test_an_unknown_size_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="no model size 'huge'; sizes are tiny, base, improved"):
        named_size("huge", {})


def test_a_causal_schedule_that_would_never_update_is_refused():
    config = named_size("tiny", {"schedule": "apply_then_update", "chunk": 100, "window": 128})
    config.check_updates(longest=4.01)  # 101 tokens: one update, seen by one token
    with pytest.raises(ValueError, match=r"chunk 100 would never be updated from.* 100 tokens"):
        config.check_updates(longest=4.0)
    SIZES["tiny"].check_updates(longest=0.1)


def test_orthogonalized_updates_from_too_few_tokens_are_warned_about():
    config = named_size("tiny", {"orthogonalize": "five_stage"})  # head width 72
    config.check_updates(longest=6.0)
    with pytest.warns(UserWarning, match=r"more than 144 tokens an update.* at most 100"):
        config.check_updates(longest=4.0)
