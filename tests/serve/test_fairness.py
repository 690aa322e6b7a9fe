"""The counters of clients; what the scheduler makes of them is in test_scheduler.py."""

from llmlab.serve.fairness import GENERATED_WEIGHT, PROMPT_WEIGHT, FairShare


def test_service_is_weighed_by_kind():
    share = FairShare()
    share.open("a")
    share.charge("a", num_prompt=5, num_generated=3)
    assert share.served("a") == 5 * PROMPT_WEIGHT + 3 * GENERATED_WEIGHT


def test_a_client_is_lifted_to_the_least_served_of_those_who_wait():
    share = FairShare()
    for client, tokens in [("a", 10), ("b", 20), ("c", 0)]:
        share.open(client)
        share.wait(client)
        share.charge(client, num_prompt=tokens)
    share.leave("c")  # it runs and waits no more, so it does not count
    share.open("d")
    share.wait("d")
    assert share.served("d") == 10
    share.wait("c")
    assert share.served("c") == 10
    share.wait("b")  # waits already: nothing changes
    assert share.served("b") == 10 + 20


def test_where_nobody_waits_old_debts_are_settled():
    share = FairShare()
    share.open("a")
    share.charge("a", num_prompt=100)  # it took what nobody else wanted
    share.open("b")
    share.wait("b")
    share.wait("a")
    assert share.served("a") == share.served("b") == 100


def test_only_clients_with_requests_are_remembered():
    share = FairShare()
    for number in range(1000):
        client = f"client {number}"
        for _ in range(2):
            share.open(client)
        share.close(client)
        assert len(share) == 1
        share.close(client)
    assert len(share) == 0
