//! A browser of a test's own: Chromium without a screen, driven over WebDriver (W3C), which is JSON over HTTP.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{PATIENCE, wait_until};

/// How WebDriver writes keys that are no letters.
pub const ENTER: &str = "\u{E007}";
pub const TAB: &str = "\u{E004}";
pub const SPACE: &str = " ";

/// How it names an element in JSON.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

pub struct Browser {
    driver: Child,
    agent: ureq::Agent,
    session: String,
    /// Goes away after the browser.
    _profile: TempDir,
}

/// A program, wherever it is, or the name of the package that has it.
fn program(name: &str, package: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default();
    let found =
        path.split(':').chain(["/usr/bin", "/usr/lib/chromium"]).map(|folder| PathBuf::from(folder).join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("these tests need a real browser: install {name} (Debian's package `{package}`)"))
}

impl Browser {
    /// Opens a page.
    pub fn open(url: &str) -> Browser {
        let (driver, chromium) = (program("chromedriver", "chromium-driver"), program("chromium", "chromium"));
        let mut driver =
            Command::new(driver).arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let said = BufReader::new(driver.stdout.take().unwrap());
        let line = said.lines().map_while(Result::ok).find(|line| line.contains("started successfully on port"));
        let port: u16 =
            line.and_then(|line| line.trim_end_matches('.').rsplit(' ').next()?.parse().ok()).expect("chromedriver says its port");
        let agent =
            ureq::Agent::config_builder().http_status_as_error(false).proxy(None).timeout_global(Some(PATIENCE)).build().new_agent();
        let profile = tempfile::tempdir().unwrap();
        let mut browser = Browser { driver, agent, session: format!("http://127.0.0.1:{port}/session"), _profile: profile };
        let folder = format!("--user-data-dir={}", browser._profile.path().display());
        // Root has no sandbox, and a container has little shared memory; nothing is to be asked of anybody but the service.
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--no-proxy-server",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1280,900",
            &folder,
        ];
        let options = json!({ "binary": chromium, "args": arguments });
        let wanted = json!({ "browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": { "browser": "ALL" }, "timeouts": { "script": 30_000 } });
        let opened = browser.ask("POST", "", &json!({ "capabilities": { "alwaysMatch": wanted } }));
        browser.session = format!("{}/{}", browser.session, opened["sessionId"].as_str().expect("a session"));
        browser.go(url);
        browser
    }

    fn try_ask(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let url = format!("{}{path}", self.session);
        let sent = match method {
            "GET" => self.agent.get(&url).call(),
            "DELETE" => self.agent.delete(&url).call(),
            _ => self.agent.post(&url).content_type("application/json").send(body.to_string()),
        };
        let mut answer = sent.map_err(|error| error.to_string())?;
        let text = answer.body_mut().with_config().limit(64 << 20).read_to_string().map_err(|error| error.to_string())?;
        let value: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        match answer.status().as_u16() {
            200 => Ok(value["value"].clone()),
            _ => Err(format!("{}: {}", value["value"]["error"], value["value"]["message"])),
        }
    }

    #[track_caller]
    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        self.try_ask(method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    pub fn go(&self, url: &str) {
        self.ask("POST", "/url", &json!({ "url": url }));
    }

    pub fn reload(&self) {
        self.ask("POST", "/refresh", &json!({}));
    }

    /// Goes to another view.
    pub fn view(&self, hash: &str) {
        self.run(&format!("location.hash = {};", json!(hash)));
    }

    /// Runs a script in the page; what it returns.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        self.ask("POST", "/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Runs one that awaits something.
    #[track_caller]
    pub fn wait_for(&self, script: &str) -> Value {
        let script = format!("const done = arguments[0]; (async () => {{ {script} }})().then(done, (error) => done(String(error)));");
        self.ask("POST", "/execute/async", &json!({ "script": script, "args": [] }))
    }

    /// Waits until an expression is true in the page.
    #[track_caller]
    pub fn wait_until(&self, what: &str, expression: &str) {
        let script = format!("return Boolean({expression});");
        let mut last = Value::Null;
        let is_so = || {
            last = self.try_ask("POST", "/execute/sync", &json!({ "script": script, "args": [] })).unwrap_or_else(Value::String);
            last == json!(true)
        };
        let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wait_until(what, is_so)));
        if waited.is_err() {
            panic!("{what}: the last answer was {last}; the page shows:\n{}\n{:#?}", self.text("body"), self.logged());
        }
    }

    /// What somebody can read there: of what is hidden, nothing.
    #[track_caller]
    pub fn text(&self, selector: &str) -> String {
        let script = "const found = document.querySelector({}); return found && (found.checkVisibility() ? found.innerText : '');";
        let found = self.run(&script.replace("{}", &json!(selector).to_string()));
        found.as_str().unwrap_or_else(|| panic!("there is no {selector}")).to_owned()
    }

    /// Waits until an element says so.
    #[track_caller]
    pub fn wait_for_text(&self, selector: &str, part: &str) {
        let found = format!("document.querySelector({})", json!(selector));
        let expression = format!("{found}?.checkVisibility() && {found}.innerText.includes({})", json!(part));
        self.wait_until(&format!("{selector} says {part:?}"), &expression);
    }

    #[track_caller]
    fn element(&self, selector: &str) -> String {
        let found = self.ask("POST", "/element", &json!({ "using": "css selector", "value": selector }));
        found[ELEMENT].as_str().unwrap().to_owned()
    }

    /// Presses it as a mouse does: what is covered, hidden or off the page can't be pressed.
    #[track_caller]
    pub fn click(&self, selector: &str) {
        let element = self.element(selector);
        self.ask("POST", &format!("/element/{element}/click"), &json!({}));
    }

    /// Types into it, after what is there.
    #[track_caller]
    pub fn type_into(&self, selector: &str, text: &str) {
        let element = self.element(selector);
        self.ask("POST", &format!("/element/{element}/value"), &json!({ "text": text }));
    }

    /// Presses keys, wherever the focus is.
    #[track_caller]
    pub fn keys(&self, keys: &str) {
        let strokes: Vec<Value> =
            keys.chars().flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key.to_string() }))).collect();
        self.ask("POST", "/actions", &json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": strokes }] }));
    }

    fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.ask("POST", "/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    /// Has it look like a screen of this size.
    pub fn resize(&self, width: u32, height: u32) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.devtools("Emulation.setDeviceMetricsOverride", &metrics);
    }

    /// `light` or `dark`; and nothing moves.
    pub fn prefer(&self, scheme: &str) {
        self.devtools("Emulation.setEmulatedMedia", &json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }, { "name": "prefers-reduced-motion", "value": "reduce" }] }));
    }

    /// A picture of the whole page as PNG, in `$TIDINGS_SCREENSHOTS` if that is set.
    pub fn picture(&self, name: &str) {
        let Some(folder) = std::env::var_os("TIDINGS_SCREENSHOTS") else { return };
        let taken = self.devtools("Page.captureScreenshot", &json!({ "captureBeyondViewport": true }));
        let mut decode = Command::new("base64")
            .arg("-d")
            .stdin(Stdio::piped())
            .stdout(std::fs::File::create(PathBuf::from(folder).join(name)).unwrap())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut decode.stdin.take().unwrap(), taken["data"].as_str().unwrap().as_bytes()).unwrap();
        assert!(decode.wait().unwrap().success());
    }

    /// What the browser has complained of since the last time, but for requests that were refused or not answered: those a test causes.
    pub fn logged(&self) -> Vec<String> {
        let entries = self.try_ask("POST", "/se/log", &json!({ "type": "browser" })).unwrap_or_default();
        let entries = entries.as_array().cloned().unwrap_or_default();
        entries
            .iter()
            .filter(|entry| entry["source"] != "network")
            .map(|entry| format!("{}: {}", entry["source"], entry["message"]))
            .collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It takes the browser along.
        let _ = self.try_ask("DELETE", "", &Value::Null);
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
