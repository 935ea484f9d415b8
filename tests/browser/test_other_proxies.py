"""The same UI through the other proxies, over TLS, where browsers speak HTTP/2 and send each cookie by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import NewContext
from tests.browser.people import open_from_menu, sign_in_with_password
from tests.browser.seed import RUNS, V2
from tests.browser.traffic import Traffic, landed_at
from tests.support.certificates import write_certificate
from tests.support.prefect import Server
from tests.support.proxies import PROXIES, Certificate, start
from tests.support.site import PEOPLE, Site


@pytest.mark.parametrize("name", [name for name in PROXIES if name != "traefik"])
def test_a_deep_link_is_where_one_lands_and_nothing_fails_there(
    name: str, new_context: NewContext, password_site: Site, prefect_server: Server, tmp_path: Path
) -> None:
    site = Site(tmp_path / "site", prefect_server.url, {}, service_port=password_site.service_port)
    site.folder.mkdir()
    port, process = start(PROXIES[name], site, Certificate(*write_certificate(tmp_path)))
    with process:
        url = f"https://{PEOPLE}:{port}"
        context = new_context(ignore_https_errors=True)  # nobody knows who signed the certificate
        traffic, page = Traffic(context, url), context.new_page()
        page.goto(url + V2.deep_link)
        sign_in_with_password(page)

        expect(page.get_by_text(RUNS[0]).first).to_be_visible()
        assert landed_at(page) == url + V2.deep_link
        for entry, text in V2.pages.items():
            open_from_menu(page, entry)
            page.wait_for_url(f"**{V2.base}/{entry.lower()}*")
            expect(page.get_by_text(text).first).to_be_visible()
        assert traffic.to("/api/")
        assert traffic.failed == []
        assert traffic.prompts == []
