// Package browser drives a real Chromium in tests of pages. It is behind the build tag browser,
// because it takes long to compile and needs Chromium on the machine:
//
//	p := browser.New(t)
//	p.SetLanguage("pt")
//	p.Viewport(360, 800)
//	p.Open(server.URL + "/console/endpoints/new")
//	p.Fill("#url", "https://example.test/hook")
//	p.Click("text=Criar endpoint")
//	p.WaitFor("text=whsec_")
//	p.Axe()
//
// A test binary has one Chromium, which the first New starts. Each test has a profile of its own
// within it: what one test stores, another does not see. Chromium ends after the last test
// (testenv.Main), or with the process if that dies. It reaches only addresses of this machine and
// names below .test, which all lead to 127.0.0.1.
//
// # What fails a test by itself
//
// A page that works does so silently. These fail its test: an exception that nothing catches, an
// error or a warning on the console, a violation of the page's Content-Security-Policy, a resource
// that cannot be loaded, and a dialog (alert, confirm, prompt), which in a test of hostile texts is
// how a script says that it ran. ExpectFault is for the test that wants one.
//
// # Selectors
//
// A selector is a CSS selector, or "text=" and a part of what a person reads. Click("text=Save")
// prefers what can be clicked, and among those what reads "Save" and nothing else. Every method
// waits for its element for up to Patience, and takes only one that is visible.
package browser
