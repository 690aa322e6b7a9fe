from llmlab.serve.params import SamplingParams
from llmlab.serve.sequence import Sequence, Slice


def test_what_is_left_to_compute_and_what_a_slice_wants():
    seq = Sequence(
        number=0, prompt_len=3, token_ids=[5, 6, 7], params=SamplingParams(), max_len=4, seed=0
    )
    assert (seq.num_pending, seq.num_generated) == (3, 0)
    part, whole = Slice(seq, 0, 2), Slice(seq, 0, 3)
    assert (part.num_tokens, part.is_last, part.wants_token) == (2, False, False)
    assert (whole.num_tokens, whole.is_last, whole.wants_token) == (3, True, True)
    seq.num_computed = 3
    seq.token_ids.append(8)
    assert (seq.num_pending, seq.num_generated) == (1, 1)
    # Nothing may follow the last token that fits, though its keys could be computed.
    assert not Slice(seq, 3, 4).wants_token
