// Package testenv is the world around the agent in tests, in the demo and in benchmarks: a private PostgreSQL, receivers
// that play customers' servers, and helpers to wait. It imports no product package, so every package may use it in
// its tests.
//
// # PostgreSQL
//
// A Cluster is a PostgreSQL server in a temporary folder of its own, started from the newest server binaries that FindPostgres
// finds. On Linux the folders of tests are in memory where there is enough of it; TMPDIR=/tmp puts them on the disk. A test
// binary has one cluster, shared by all its tests, and each test a database cloned from a template:
//
//	func TestMain(m *testing.M) {
//		testenv.Main(m, testenv.Options{Template: func(ctx context.Context, url string) error { return migrate(ctx, url) }})
//	}
//
//	func TestX(t *testing.T) {
//		t.Parallel()
//		db := testenv.NewDB(t)
//		db.Exec(t, "insert into ...")
//	}
//
// The cluster is started by the first NewDB, so pure tests run without PostgreSQL. Where there is none, NewDB fails
// the test with the sentence that says what to install. A test that restarts or crashes the server, sets server
// parameters, or holds a writing transaction open (which blocks the creation of replication slots in every database)
// takes a cluster of its own by NewCluster.
//
// # Receivers
//
// A Receiver plays a customer's server. It records what arrives, verifies both signatures by code of its own, and answers as
// the test says:
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
// Nothing after a normal end. When the process that started a cluster dies without one, the kernel stops the server
// (Linux), and the next Start removes the folder: each process holds a lock (flock) on the folders of its clusters, so
// a folder that can be locked has no owner. The lock is taken before the folder gets its final name, so that no folder in
// use is ever seen unlocked.
package testenv
