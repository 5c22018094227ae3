// Package testenv is the world around the agent in tests, in the demo and in benchmarks: a private
// PostgreSQL, receivers that play customers' servers, and helpers to wait. It imports no product
// package, so the tests of every package may use it.
//
// # PostgreSQL
//
// A Cluster is a PostgreSQL server in a temporary folder of its own. It uses the server binaries
// that FindPostgres finds. On Linux the folders of tests are in memory if there is enough of it;
// TMPDIR=/tmp puts them on the disk. A test binary has one cluster, which all its tests share. Each
// test has a database that is cloned from a template:
//
//	func TestMain(m *testing.M) {
//		testenv.Main(m, testenv.Options{Template: migrate})
//	}
//
//	func TestX(t *testing.T) {
//		t.Parallel()
//		db := testenv.NewDB(t)
//		db.Exec(t, "insert into ...")
//	}
//
// The first NewDB starts the cluster, so pure tests run without PostgreSQL. If there are no server
// binaries, NewDB fails the test with the sentence that says what to install.
//
// Some tests need a cluster of their own, by NewCluster: those that restart or crash the server,
// set server parameters, or hold a writing transaction open (which blocks the creation of
// replication slots in every database).
//
// # Receivers
//
// A Receiver plays a customer's server. It records what arrives, verifies both signatures by code
// of its own, and gives the answers that the test has set:
//
//	r := testenv.StartReceiver(t, secret)
//	r.SetAnswer("/hook", testenv.Statuses(500, 503, 200))
//	// ... an agent delivers to r.URL + "/hook" ...
//	for _, received := range r.Wait(t, 3, 10*time.Second) {
//		if received.SignatureErr != nil {
//			t.Error(received.SignatureErr)
//		}
//	}
//
// # What is left behind
//
// Nothing is left behind after a normal end. If the process that started a cluster dies, the kernel
// stops the server (Linux), and the next Start removes the folder. Each process holds a lock
// (flock) on the folders of its clusters, so a folder that can be locked has no owner. A folder is
// locked before it gets its final name, so that a folder in use is never seen unlocked.
package testenv
