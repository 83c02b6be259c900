"""What the stock openpi-client does in `test_peers.py` and `bench/serving.py`, run by the
interpreter of its own environment, which has neither torch nor armlet.

    python openpi_side.py ask PORT IN.npz OUT.npz         what is answered to each observation in turn
    python openpi_side.py load PORT IN.npz CONNECTIONS SECONDS OUT.json
                                                          many robots at once, each as fast as it is
                                                          answered, with a histogram of the waits
"""

import json
import sys
import threading
import time

import numpy as np
from openpi_client import image_tools
from openpi_client.websocket_client_policy import WebsocketClientPolicy

BOUNDS_MS = [1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 2000, 5000]


def observations(path):
    """One for each row: pictures by camera, a state, words, as openpi's examples say them."""
    columns = np.load(path)
    found = []
    for row in range(len(columns["prompt"])):
        told = {}
        for name in columns.files:
            value = columns[name][row]
            if name == "prompt":
                told[name] = str(value)
            elif value.ndim == 3:
                told[f"observation/{name}"] = image_tools.convert_to_uint8(value)
            else:
                told[f"observation/{name}"] = value
        found.append(told)
    return found


def ask(port, source, out):
    client = WebsocketClientPolicy("127.0.0.1", int(port))
    client.reset()
    answers = [client.infer(told)["actions"] for told in observations(source)]
    metadata = json.dumps(client.get_server_metadata())
    np.savez(out, actions=np.stack(answers), metadata=metadata)


def load(port, source, connections, seconds, out):
    told = observations(source)
    waits = [[] for _ in range(int(connections))]
    failed = []
    begun = time.monotonic()
    end = begun + float(seconds)

    def robot(number):
        try:
            client = WebsocketClientPolicy("127.0.0.1", int(port))
            step = number
            while time.monotonic() < end:
                asked = time.perf_counter()
                client.infer(told[step % len(told)])
                waits[number].append(time.perf_counter() - asked)
                step += 1
        except Exception as error:
            failed.append(f"{type(error).__name__}: {error}"[:200])

    robots = [threading.Thread(target=robot, args=(number,)) for number in range(len(waits))]
    for each in robots:
        each.start()
    for each in robots:
        each.join()
    took = time.monotonic() - begun
    every = 1e3 * np.concatenate([np.array(each) for each in waits])
    counts = [len(each) for each in waits]
    bins = np.histogram(every, bins=[0, *BOUNDS_MS, np.inf])[0]
    report = {
        "connections": len(waits),
        "seconds": took,
        "answers": len(every),
        "answers_a_second": len(every) / took,
        "failed": failed,
        "answers_a_connection": {"fewest": min(counts), "most": max(counts)},
        "wait_ms": {name: float(np.quantile(every, share)) for name, share in
                    (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999), ("most", 1.0))},
        "histogram": [{"up_to_ms": bound, "answers": int(count)}
                      for bound, count in zip([*BOUNDS_MS, None], bins, strict=True)],
    }  # fmt: skip
    with open(out, "w") as file:
        json.dump(report, file, indent=1)


if __name__ == "__main__":
    {"ask": ask, "load": load}[sys.argv[1]](*sys.argv[2:])
