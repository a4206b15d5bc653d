"""Renews docs/app.jpg: the app, with the first of its examples matched.

python -m tests.app.picture
"""

import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from lightglue_hf import app

from .conftest import ARGUMENTS, Loading, waiting_for_result

PICTURE = Path(__file__).parent.parent.parent / "docs" / "app.jpg"
WIDTH, SHOWN, QUALITY = 1280, 1000, 80  # pixels of the window and of the picture; JPEG's quality
SETTINGS = {"max_keypoints": 512, "threshold": 0.5}  # few enough lines to see the photos between them


def main() -> None:
    page = app.build(Loading())
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=[*ARGUMENTS, "--no-sandbox"])
        visitor = browser.new_page(viewport={"width": WIDTH, "height": 1000})
        visitor.goto(app.serve(page, port=None))
        visitor.locator("table tbody tr, .gallery button").first.click()
        visitor.locator(".photo img[src*='file=']").nth(1).wait_for()
        for field, value in SETTINGS.items():
            visitor.locator(f"#{field} input[type=number]").fill(str(value))
        visitor.get_by_text("Turned and huge photos").click()
        with waiting_for_result(visitor):
            visitor.locator("#match").click()
        drawn = visitor.locator("#matches img").element_handle()
        visitor.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=drawn)
        visitor.mouse.move(0, 0)
        visitor.wait_for_timeout(2000)  # until nothing fades in any more
        shown = Image.open(io.BytesIO(visitor.screenshot(full_page=True))).convert("RGB")
        browser.close()
    page.close(verbose=False)
    shown = shown.resize((SHOWN, round(SHOWN * shown.height / shown.width)), Image.Resampling.LANCZOS)
    shown.save(PICTURE, quality=QUALITY, optimize=True, progressive=True)
    print(f"wrote {PICTURE}: {shown.width} x {shown.height}, {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
