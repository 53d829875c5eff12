"""Slots between processes: sleeping, and sudden death of either side."""

from __future__ import annotations

import numpy as np
import pytest
from fdql.shm.slots import SlotClient, SlotServer
from shm_blocks import SECOND, slots_block
from shm_children import answer, body, number_of


def serve(server: SlotServer, requests: int) -> None:
    ids = np.zeros(server.groups * server.workers, np.int32)
    while requests > 0:
        n = server.collect(ids, len(ids), 1_000_000, SECOND)
        answer(server, ids[:n])
        server.reply(ids, n, requests)
        requests -= n


@pytest.mark.parametrize("spin_ns", [0, 20_000])
def test_two_workers_two_groups(spin_ns):
    block = slots_block(2, 2, 3, 24, 20, shared=True)
    server = SlotServer(block.memory, block.bell, block.control)
    server.spin_ns = spin_ns
    with block.child("ask", 0, 400) as first, block.child("ask", 1, 400) as second:
        serve(server, 2 * 2 * 400)
        assert first.wait() == second.wait() == 0
    assert server.ready() == 0


def test_killed_worker_and_its_successors():
    """SIGKILL anywhere: the successor is served, and gets replies to its own requests only."""
    block = slots_block(1, 2, 2, 2000, 1000, shared=True)
    server = SlotServer(block.memory, block.bell, block.control)
    for life in range(6):
        with block.child("ask", 0, 1 << 40) as child:
            assert child.stdout.readline() == "attached\n"
            serve(server, 31 * (life + 1))
            child.kill()
            child.wait()
    with block.child("ask", 0, 50) as child:  # asserts every reply
        while child.poll() is None:
            serve_what_is_there(server)
        assert child.returncode == 0


def serve_what_is_there(server: SlotServer) -> None:
    ids = np.zeros(server.groups * server.workers, np.int32)
    n = server.collect(ids, len(ids), 1_000_000, 10_000_000)
    answer(server, ids[:n])
    server.reply(ids, n, 1)


def test_killed_server_and_its_successors():
    block = slots_block(1, 2, 2, 2000, 1000, shared=True)
    client = SlotClient(block.memory, 0, block.bell, block.control)
    number = 0
    for life in range(5):
        with block.child("serve", 1 << 40) as child:
            assert child.stdout.readline() == "attached\n"
            for _ in range(17 * (life + 1)):
                exchange(client, number)
                number += 1
            fill(client, number)
            client.submit(0)  # whatever becomes of this one
            child.kill()
            child.wait()
        with block.child("serve", 1 << 40) as child:
            while not client.wait(0, SECOND):
                pass
            check(client, number)
            child.kill()
            child.wait()


def fill(client: SlotClient, number: int) -> None:
    obs = client.obs(0)
    for e in range(client.envs):
        at = e * client.obs_stride
        obs[at : at + client.obs_bytes] = body(number, client.obs_bytes)


def check(client: SlotClient, number: int) -> None:
    actions = client.actions(0)
    for e in range(client.envs):
        at = e * client.action_stride
        assert number_of(actions[at : at + client.action_bytes]) == number + 1


def exchange(client: SlotClient, number: int) -> None:
    fill(client, number)
    client.submit(0)
    while not client.wait(0, SECOND):
        pass
    check(client, number)
