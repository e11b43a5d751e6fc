"""Whatever names hold, they are text: in lists, in addresses, in what goes to the service, and in commands."""

from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.console.conftest import Console, console_of, send
from tests.making import NODE, at, event_json, node
from tests.processes import Service

pytestmark = pytest.mark.console

NAMES = (
    "orders/17",
    "a//b/../c",
    "100%/50%25",
    "😀/émile",
    "<img src=x onerror=alert(1)>",
    "\"'`&amp;#?;",
    "a b+c",
    "{{x}}${y}",
)
DOMAIN = "racks/<b>7</b> 😀%"
MARKUP = "<script>document.title='taken'</script>"
LARGE = 9_223_372_036_854_775_807  # the greatest position, above what JavaScript's numbers hold


@pytest.fixture(scope="module", autouse=True)
def rows(live: Service) -> None:
    """Workflows of these names, and a node whose every text is strange."""
    for name in NAMES:
        answer = httpx.put(
            f"{live.url}/v1/workflows/{quote(name, safe='')}",
            json={"state": {name: LARGE}, "provenance": {"effect_id": name, "timestamp": at(0)}},
            headers={"If-None-Match": "*"},
        )
        assert answer.status_code == 201, answer.text
    strange = {"node_type": MARKUP, "node_version": "<i>1</i>", "capabilities": {MARKUP: True, "port": {"a": MARKUP}}}
    send(live.url, [event_json("registration.initiated", 1, data=strange, position={"sequence": LARGE})])
    send(live.url, [event_json("registration.initiated", 1, entity_id=node(1), data=strange, domain=DOMAIN)])


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_of_any_name_is_found(live: Service, tab: Console, name: str) -> None:
    """The name stands in the list as it is, its link leads to its page, and "go to" finds it by its name."""
    tab.open("workflows")
    tab.rows("Workflows").locator("a.key", has_text=name).filter(has_text=name).first.click()
    expect(tab.page.locator(".lead code")).to_have_text(name)
    assert str(LARGE) in tab.page.get_by_role("region", name="State", exact=True).inner_text()
    tab.open(f"workflow?key={quote(name, safe='')}")
    expect(tab.page.locator(".lead code")).to_have_text(name)
    tab.open("overview")
    tab.page.keyboard.press("/")
    tab.page.keyboard.insert_text(name)
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator(".lead code")).to_have_text(name)
    assert tab.page.locator("main img, main script, main i, main b").count() == 0


def test_a_name_that_is_a_step_in_a_path_is_explained(live: Service, browser: Browser) -> None:
    """A browser cannot ask for the workflow `..`: the page says so, and asks for nothing else."""
    with console_of(browser, live.url) as tab:
        tab.page.goto(f"{live.url}/ui/workflow?key=..")
        expect(tab.page.get_by_role("alert")).to_contain_text("a browser cannot ask for ..")


def test_a_node_with_markup_is_text(live: Service, tab: Console) -> None:
    """Types, versions and capabilities are shown to the letter, and a great position exactly."""
    tab.open(f"entity?id={NODE}")
    assert tab.fact("Node type") == MARKUP
    assert tab.fact("Node version") == "<i>1</i>"
    assert tab.fact("Stands at") == f"sequence {LARGE}"
    assert f'"last_applied_sequence": {LARGE}' in tab.page.get_by_role("region", name="JSON", exact=True).inner_text()
    assert tab.page.locator("main script, main i").count() == 0
    assert tab.page.title() == "Entity · Projection Query Service"


def test_a_domain_of_any_name_is_chosen(live: Service, tab: Console) -> None:
    """The domain is offered by its name, its pages show it, and links keep it."""
    tab.open("overview")
    tab.page.locator("select[name=domain]").select_option(DOMAIN)
    expect(tab.page.get_by_role("heading", level=1)).to_have_text(f"Overview of {DOMAIN}")
    expect(tab.page.locator("[data-number=total]")).to_have_text("1")
    tab.page.locator("svg.states a.pending_registration").click()
    expect(tab.rows("Entities")).to_have_count(1)
    tab.rows("Entities").locator("a.id").click()
    expect(tab.page.locator(".lead")).to_contain_text(DOMAIN)
    tab.page.get_by_role("link", name="Overdue").click()
    expect(tab.page.locator("select[name=domain]")).to_have_value(DOMAIN)


def test_a_copied_command_does_what_the_page_does(live: Service, browser: Browser) -> None:
    """The copied curl is quoted for a shell, whatever the filter holds."""
    with console_of(browser, live.url, permissions=["clipboard-read", "clipboard-write"]) as tab:
        tab.open(f"entities?node_type={quote(MARKUP)}")
        tab.page.get_by_role("button", name="Copy curl", exact=True).click()
        copied = tab.page.evaluate("navigator.clipboard.readText()")
        assert copied == (
            f"curl -sS '{live.url}/v1/entities?domain=registration&node_type="
            "%3Cscript%3Edocument.title%3D%27taken%27%3C%2Fscript%3E'"
        )
