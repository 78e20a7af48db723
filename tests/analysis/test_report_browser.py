"""The page in headless Chromium: nothing fails, the table obeys, strips show what was tuned."""

import shutil

import numpy as np
import pytest

from tests.helpers.nearest import nearest
from tests.helpers.toy_models import WORDS
from wayward_jax.jobs import records

webdriver = pytest.importorskip("selenium.webdriver")

pytestmark = pytest.mark.slow

FLAGS = (
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
    *("disable-background-networking", "disable-component-update", "disable-sync"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium and chromedriver (Debian's chromium-driver) are not on PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def page(browser, analysis):
    browser.get((analysis / "report.html").as_uri())
    return browser


@pytest.fixture
def rows(job):
    return {row["id"]: row for row in records.read_lines(job / "runs" / "results.jsonl")}


def find(page, selector):
    return page.find_elements("css selector", selector)


def texts(page, selector):
    return [element.text for element in find(page, selector)]


def shown_ids(page):
    return [line.get_attribute("data-id") for line in find(page, "#runs tbody tr[data-id]")]


def column(page, name):
    """The cells of a column of the table of runs, as texts."""
    names = [head.get_attribute("data-name") for head in find(page, "#runs th")]
    return texts(page, f"#runs tbody tr[data-id] td:nth-child({names.index(name) + 1})")


def sort(page, name):
    find(page, f'#runs th[data-name="{name}"] button')[0].click()


def test_the_page_opens_without_errors_and_loads_nothing_else(page):
    assert page.get_log("browser") == []
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert len(find(page, "figure svg")) == 3


def test_a_run_is_compared_with_the_p_star_of_its_seed(page, rows):
    best = {row["seed"]: row["accuracy"] for row in rows.values() if not row["target_ids"]}
    assert len(best) > 1
    drops = dict(zip(shown_ids(page), column(page, "drop"), strict=True))
    for id_, row in rows.items():
        if row["target_ids"]:
            expected = 100 * (best[row["seed"]] - row["accuracy"]) / best[row["seed"]]
            assert float(drops[id_].replace("\N{MINUS SIGN}", "-")) == pytest.approx(
                expected, abs=0.051
            )


def test_the_table_has_all_runs(page, rows):
    assert sorted(shown_ids(page)) == sorted(rows)
    assert "of 10 runs" in page.find_element("id", "shown").text


def test_a_column_sorts_up_and_then_down(page, rows):
    sort(page, "accuracy")
    up = [rows[id_]["accuracy"] for id_ in shown_ids(page)]
    assert up == sorted(up)
    assert column(page, "accuracy") == [f"{value:.3f}" for value in up]
    sort(page, "accuracy")
    assert [rows[id_]["accuracy"] for id_ in shown_ids(page)] == sorted(up, reverse=True)
    assert find(page, "#runs th[aria-sort=descending]")[0].get_attribute("data-name") == "accuracy"


def test_missing_values_come_last_in_both_orders(page, rows):
    for _ in range(2):
        sort(page, "prompt_f1")
        found = [rows[id_]["prompt_f1"] for id_ in shown_ids(page)]
        assert found[-2:] == [None, None]
        assert None not in found[:-2]


def test_words_filter_the_runs(page, rows):
    page.find_element("id", "find").send_keys("GREAT w3")
    wanted = [id_ for id_, row in rows.items() if "w3" in row["target_text"]]
    assert sorted(shown_ids(page)) == sorted(wanted)


def test_prompts_are_filtered_by_what_they_read_as(page, rows):
    choices = {
        "yes": lambda f1: f1 is not None and f1 >= 0.98,
        "no": lambda f1: f1 is not None and f1 < 0.98,
        "p_star": lambda f1: f1 is None,
    }
    for value, wanted in choices.items():
        find(page, f'#reading option[value="{value}"]')[0].click()
        assert sorted(shown_ids(page)) == sorted(i for i in rows if wanted(rows[i]["prompt_f1"]))


def test_the_page_says_so_if_no_run_matches_the_filter(page):
    page.find_element("id", "find").send_keys("nothing is called this")
    assert shown_ids(page) == []
    assert page.find_element("id", "shown").text == "no run matches"


def test_every_strip_shows_the_target_and_what_the_checkpoint_reads_as(page, rows, job, table):
    seen = set()
    for _ in rows:
        run = find(page, "#hero .prompt")[0].get_attribute("data-id")
        ids, _ = nearest(job, rows[run], table)
        assert texts(page, "#hero .read") == [WORDS[i] for i in ids[:, 0]]
        assert texts(page, "#hero .target") == [WORDS[i] for i in rows[run]["target_ids"]]
        differ = [a != b for a, b in zip(ids[:, 0], rows[run]["target_ids"], strict=False)]
        assert len(find(page, "#hero .read.differs")) == sum(differ)
        seen.add(run)
        page.find_element("id", "next").click()
    assert seen == set(rows)


def test_a_token_in_focus_shows_its_ten_neighbors_and_arrows_move_on(page, rows, job, table):
    run = find(page, "#hero .prompt")[0].get_attribute("data-id")
    ids, distances = nearest(job, rows[run], table)
    find(page, "#hero .token")[0].click()
    for position in range(2):
        assert texts(page, "#card .name") == [WORDS[i] for i in ids[position]]
        found = [float(text) for text in texts(page, "#card td.number")]
        np.testing.assert_allclose(found, distances[position], rtol=6e-3)
        page.switch_to.active_element.send_keys("\ue014")  # right
    page.switch_to.active_element.send_keys("\ue00c")  # escape
    assert not page.find_element("id", "card").is_displayed()


def test_a_run_of_the_table_opens_with_its_curve_and_command(page, rows):
    find(page, "#runs .open")[3].click()
    run = shown_ids(page)[3]
    assert find(page, "#runs .detail .prompt")[0].get_attribute("data-id") == run
    assert find(page, "#runs .detail pre")[0].text.endswith(f"--only={run}")
    assert len(find(page, "#runs .detail svg polyline")) == 1 + bool(rows[run]["target_ids"])
    find(page, "#runs .open")[3].click()
    assert find(page, "#runs .detail") == []


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_window_and_text_stands_out(page, width, scheme):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    for selector in ("body", ".lede", "#hero .what", "#hero .target", "#hero .read", "th"):
        assert contrast(page, selector) >= 4.5  # WCAG 2, AA


def contrast(page, selector):
    """The contrast of an element's text with what is painted behind it."""
    front, back = page.execute_script(
        """
        const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
        const paint = (color) => {
          canvas.fillStyle = color;
          canvas.fillRect(0, 0, 1, 1);
          return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
        };
        let element = document.querySelector(arguments[0]);
        const front = paint(getComputedStyle(element).color);
        const clear = (color) => color === "rgba(0, 0, 0, 0)";
        while (clear(getComputedStyle(element).backgroundColor)) element = element.parentElement;
        return [front, paint(getComputedStyle(element).backgroundColor)];
        """,
        selector,
    )
    channels = np.array([front, back]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    light, dark = sorted(linear @ [0.2126, 0.7152, 0.0722], reverse=True)
    return (light + 0.05) / (dark + 0.05)
