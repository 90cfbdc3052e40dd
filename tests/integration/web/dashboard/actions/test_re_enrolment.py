"""Allow and forbid the re-enrolment of a device in the dashboard."""

from concurrent.futures import ThreadPoolExecutor

import httpx2

from tests.integration.web.dashboard.actions.conftest import (
    confirmation,
    list_acts,
    provision,
)
from tests.integration.web.dashboard.conftest import Guarded
from tests.support.devices.acts import allow_re_enrolment, retire_device, suspend_device
from tests.support.programs.running import new_serial

PATH = "/dashboard/device/re-enrolment"


def test_it_is_allowed_and_forbidden_again(guarded: Guarded, operator: httpx2.Client) -> None:
    """Each is done once, and the page of the act leads to the opposite."""
    [serial] = provision(guarded, new_serial())
    query = {"serial": serial}
    device = operator.get("/dashboard/device", params=query)
    assert "Allow re-enrolment" in device.text
    fields = confirmation(operator.get(PATH, params=query)) | {"period": ["1 hour"]}
    for _ in range(2):
        done = operator.post(PATH, data=fields)
        assert done.status_code == 303
        assert [each.act for each in list_acts(guarded, serial)] == ["device.allow-re-enrolment"]
    act = operator.get(done.headers["location"])
    assert "Undo: forbid re-enrolment" in act.text
    assert "Forbid re-enrolment" in operator.get("/dashboard/device", params=query).text
    forbid = confirmation(operator.get(PATH, params=query))
    assert forbid["allow"] == ["no"]
    assert operator.post(PATH, data=forbid).status_code == 303
    assert [each.act for each in list_acts(guarded, serial)] == [
        *("device.forbid-re-enrolment", "device.allow-re-enrolment"),
    ]
    [row] = guarded.running.rows(
        "SELECT count(*) FROM re_enrolments WHERE device_serial = ?", serial
    )
    assert row == (0,)


def test_a_form_is_sent_many_times_at_once(guarded: Guarded, operator: httpx2.Client) -> None:
    """One act, and each response shows it."""
    [serial] = provision(guarded, new_serial())
    cookies = dict(operator.cookies)
    for kind in ("device.allow-re-enrolment", "device.forbid-re-enrolment"):
        fields = confirmation(operator.get(PATH, params={"serial": serial}))

        def send(_: int, fields: dict[str, list[str]] = fields) -> tuple[int, str]:
            with guarded.running.client(
                headers={"Accept": "text/html"}, cookies=cookies
            ) as browser:
                answer = browser.post(PATH, data=fields)
            return answer.status_code, answer.headers.get("location", "")

        with ThreadPoolExecutor(8) as threads:
            [(status, place)] = set(threads.map(send, range(8)))
        acts = list_acts(guarded, serial)
        assert [each.act for each in acts].count(kind) == 1
        assert (status, place) == (303, f"/dashboard/act?id={acts[0].id}&done=yes")


def test_another_operator_was_faster(guarded: Guarded, operator: httpx2.Client) -> None:
    """The form of before is refused, and the page shows how it is now."""
    [serial] = provision(guarded, new_serial())
    fields = confirmation(operator.get(PATH, params={"serial": serial}))
    allow_re_enrolment(guarded.database, serial)
    refused = operator.post(PATH, data=fields)
    assert refused.status_code == 409
    assert "changed since this page was made" in refused.text
    assert "by an operator" in refused.text


def test_only_an_active_device(guarded: Guarded, operator: httpx2.Client) -> None:
    serials = provision(guarded, new_serial(), new_serial())
    fields = confirmation(operator.get(PATH, params={"serial": serials[0]}))
    suspend_device(guarded.database, serials[0])
    retire_device(guarded.database, serials[1])
    told = ("Reinstate it first", "under another serial")
    for serial, sentence in zip(serials, told, strict=True):
        page = operator.get(PATH, params={"serial": serial})
        assert sentence in page.text
        assert 'type="submit">Allow' not in page.text
    refused = operator.post(PATH, data=fields)
    assert refused.status_code == 409
    assert list_acts(guarded, serials[0])[0].act == "device.suspend"


def test_what_is_refused(operator: httpx2.Client) -> None:
    assert operator.get(PATH).status_code == 422
    assert operator.get(PATH, params={"serial": "nobody"}).status_code == 404
    assert operator.post(PATH, data={"serial": "nobody"}).status_code == 403
