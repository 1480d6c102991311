// Package testkit runs the real servers that auditsink's tests and benchmark talk to: PostgreSQL 15
// and 18, and Apache Kafka with or without SASL and TLS.
//
// Tests use [Main], [Postgres] and [Kafka], which share one server of a kind for each test process.
// A test that stops, pauses or configures a server takes its own with [OwnPostgres] or [OwnKafka].
// The benchmark has no *testing.T and uses [StartPostgres] and [StartKafka].
//
// For faults there are, besides a server's own Stop, Kill and Pause: a [Cluster] of brokers, a standby ([PostgresServer.StartStandby]), a
// [Proxy] that is a bad network, a [Cutter] that breaks connections at a COMMIT, and a [SmallTablespace] that is full. A [PgBouncer] in transaction mode
// is no fault, but takes sessions away.
//
// The servers come from Maven Central and from Debian. What is missing on the machine is an error
// that names the Debian package, never a skipped test. Servers are children of the test process and
// die with it, however it ends. Their data is on disk for the benchmark, in memory for tests. The package is for Linux only.
package testkit
