"""Several engines behind one server, each in a process of its own, on Ray (`--replicas N`).

    HTTP ─▶ ReplicaEngine ─▶ Dispatcher ─▶ PrefixRouter     one process: tokenizer, no weights
                  │ Ray
                  ├─▶ Replica: AsyncEngine ─▶ Engine        a process each: weights, pages
                  └─▶ Replica: ...

router.py chooses a replica, dispatch.py says what becomes of requests when one dies (both plain
Python), engine.py moves requests and deltas, replica.py runs in the other processes, cluster.py is
the only module that knows Ray.
"""
