"""The page in headless Chromium. With MM01_SCREENSHOTS the pictures go to docs/screenshots."""
import json
import os
import shutil
import time

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from conftest import ROOT

FOLDER = ROOT / "docs/screenshots"


@pytest.fixture(scope="module")
def browser(server):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium and chromium-driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,860",
                 "--disable-dev-shm-usage", "--hide-scrollbars", "--no-proxy-server"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    found.get(server.url + "/")
    yield found
    errors = [e for e in found.get_log("browser") if e["level"] == "SEVERE"]
    found.quit()
    assert not errors


def wait(browser, what, seconds=60):
    return WebDriverWait(browser, seconds).until(lambda b: what(b))


def find(browser, css):
    return browser.find_element(By.CSS_SELECTOR, css)


def shoot(browser, name):
    if os.environ.get("MM01_SCREENSHOTS"):
        FOLDER.mkdir(exist_ok=True)
        browser.save_screenshot(str(FOLDER / f"{name}.png"))


def is_idle(browser):
    return find(browser, "#send").is_displayed()


def ask(browser, text, wait_for_answer=True):
    find(browser, "#input").send_keys(text, Keys.ENTER)
    wait(browser, lambda b: not is_idle(b) or b.find_elements(By.CSS_SELECTOR, ".assistant .stats"))
    if wait_for_answer:
        wait(browser, is_idle)


def settle(browser, **settings):
    script = ("for (const [k, v] of Object.entries(arguments[0])) { const e = "
              "document.getElementById('set-' + k); e.value = v; "
              "e.dispatchEvent(new Event('input', {bubbles: true})); }")
    browser.execute_script(script, settings)


def answers(browser):
    return browser.find_elements(By.CSS_SELECTOR, ".message.assistant")


def test_chat(browser):
    wait(browser, lambda b: find(b, "#model-name").text == "nano")
    settle(browser, max_tokens=60, seed=4, temperature=0.7)
    ask(browser, "The sea was calm that night, and")
    assert answers(browser)[0].find_element(By.CSS_SELECTOR, ".body").text
    assert "wrote" in answers(browser)[0].text
    assert "/" in find(browser, "#context-gauge .value").text
    shoot(browser, "chat")


def test_history_is_kept(browser):
    text = answers(browser)[0].text
    browser.refresh()
    wait(browser, lambda b: find(b, "#model-name").text == "nano")
    assert answers(browser)[0].text == text


def test_regenerate_and_edit_branch(browser):
    settle(browser, seed=9)
    answers(browser)[0].find_element(By.XPATH, ".//button[.='Regenerate']").click()
    wait(browser, is_idle)
    assert find(browser, ".assistant .place").text == "2 / 2"
    user = find(browser, ".message.user")
    user.find_element(By.XPATH, ".//button[.='Edit']").click()
    area = find(browser, ".editor")
    area.clear()
    area.send_keys("The mountain was steep, and")
    find(browser, ".message .tools").find_element(By.XPATH, "./button[.='Send']").click()
    wait(browser, is_idle)
    assert find(browser, ".user .place").text == "2 / 2"
    shoot(browser, "branch")
    find(browser, ".user .tools").find_element(By.XPATH, "./button[.='‹']").click()
    assert "calm" in find(browser, ".message.user .body").text


def test_stop(browser):
    settle(browser, max_tokens=4000)
    # Left to itself the small model may have ended before the button is found.
    browser.execute_script("""
      const plain = window.fetch, eos = String(arguments[0]);
      window.fetch = (url, how) => {
        if (how?.body) how.body = JSON.stringify({...JSON.parse(how.body), logit_bias: {[eos]: -100}});
        return plain(url, how);
      };""", json.loads((ROOT / "models/nano/config.json").read_text())["eos_token_id"])
    ask(browser, "Once upon a time", wait_for_answer=False)
    wait(browser, lambda b: not is_idle(b))
    find(browser, "#stop").click()
    wait(browser, is_idle, 5)
    browser.refresh()
    wait(browser, lambda b: find(b, "#model-name").text == "nano")
    settle(browser, max_tokens=60)


def test_a_dropped_file_and_its_progress(browser):
    find(browser, "#new-chat").click()
    book = (ROOT / "data/the-iron-heel.txt").read_text()[:26000]
    browser.execute_script("""
      const files = new DataTransfer();
      files.items.add(new File([arguments[0]], 'the-iron-heel.txt', {type: 'text/plain'}));
      dispatchEvent(new DragEvent('drop', {dataTransfer: files}));""", book)
    wait(browser, lambda b: "the-iron-heel.txt" in find(b, "#files").text)
    find(browser, "#input").send_keys("Who is Ernest?", Keys.ENTER)
    wait(browser, lambda b: " left" in find(b, "#progress").text or is_idle(b))
    shoot(browser, "long-prefill")
    wait(browser, is_idle)
    assert "the-iron-heel.txt" in find(browser, ".message.user").text


def test_dark(browser):
    find(browser, "#toggle-settings").click()
    find(browser, "#toggle-theme").click()
    assert browser.execute_script("return document.documentElement.dataset.theme") == "dark"
    time.sleep(0.5)
    shoot(browser, "dark")


def test_models_write_text_not_html(browser):
    browser.execute_script("""
      const chat = {id: 'x', title: 'x', leaf: 'b', nodes: {
        a: {id: 'a', parent: null, role: 'user', text: '<img src=x onerror=alert(1)>'},
        b: {id: 'b', parent: 'a', role: 'assistant',
            text: '<script>alert(1)</script> **bold** `code`\\n\\n```\\n<b>x</b>\\n```'}}};
      localStorage.setItem('mm01.chat.x', JSON.stringify(chat));
      localStorage.setItem('mm01.chats', JSON.stringify([{id: 'x', title: 'x'}]));""")
    browser.refresh()
    wait(browser, lambda b: answers(b))
    body = answers(browser)[0].find_element(By.CSS_SELECTOR, ".body")
    assert "<script>alert(1)</script>" in body.text and "<b>x</b>" in body.text
    assert body.find_element(By.CSS_SELECTOR, "strong").text == "bold"
    assert not browser.find_elements(By.CSS_SELECTOR, "#messages img")
