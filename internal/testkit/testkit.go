package testkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// Main runs a package's tests, for its TestMain, with the servers' data in memory where there is room. It
// then closes the servers that the tests shared, and fails when a goroutine is left. It does not return.
//
//	func TestMain(m *testing.M) { testkit.Main(m) }
func Main(m *testing.M, options ...goleak.Option) {
	inMemory.Store(true)
	code := m.Run()
	if err := errors.Join(sharedPostgres.close(), sharedKafka.close()); err != nil {
		fmt.Fprintf(os.Stderr, "testkit: close the servers: %v\n", err)
		code = max(code, 1)
	}
	// After a failure a goroutine may be left for a good reason, and would only hide the failure.
	if code == 0 {
		if err := goleak.Find(options...); err != nil {
			fmt.Fprintf(os.Stderr, "testkit: goroutines left by the tests: %v\n", err)
			code = 1
		}
	}
	os.Exit(code)
}

// Postgres returns the URL of a new, empty database on a server that this process's tests share.
// version is 15 or 18. The database goes when the test ends, with the sessions on it.
func Postgres(t testing.TB, version int) string {
	t.Helper()
	server := PostgresServerFor(t, version)
	databaseURL, err := server.CreateDatabase(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() {
		// t.Context() has ended by now.
		require.NoError(t, server.DropDatabase(context.WithoutCancel(t.Context()), databaseURL))
	})
	return databaseURL
}

// PostgresServerFor returns the server that Postgres makes its databases on. It belongs to all tests of
// the process: one that wants to stop a server takes its own with OwnPostgres.
func PostgresServerFor(t testing.TB, version int) *PostgresServer {
	t.Helper()
	server, err := sharedPostgres.get(version)
	require.NoError(t, err)
	return server
}

// OwnPostgres starts a server for this test alone and closes it when the test ends.
func OwnPostgres(t testing.TB, options PostgresOptions) *PostgresServer {
	t.Helper()
	server, err := StartPostgres(t.Context(), options)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	return server
}

// Kafka returns the broker that this process's tests share. Take topics and groups of your own on it,
// see Name. A test that wants to stop a broker takes its own with OwnKafka.
func Kafka(t testing.TB) *Broker {
	t.Helper()
	broker, err := sharedKafka.get(struct{}{})
	require.NoError(t, err)
	return broker
}

// OwnKafka starts a broker for this test alone and closes it when the test ends.
func OwnKafka(t testing.TB, options KafkaOptions) *Broker {
	t.Helper()
	broker, err := StartKafka(t.Context(), options)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, broker.Close()) })
	return broker
}

// OwnKafkaCluster starts a cluster of three nodes for this test alone and closes it when the test ends.
func OwnKafkaCluster(t testing.TB, options KafkaOptions) *Cluster {
	t.Helper()
	cluster, err := StartKafkaCluster(t.Context(), options)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cluster.Close()) })
	return cluster
}

// Eventually waits until a condition holds, for as long as within. It asks on the test's own goroutine, where a condition may fail the test.
func Eventually(t testing.TB, within time.Duration, what string, cond func() bool) {
	t.Helper()
	late := time.After(within)
	for !cond() {
		select {
		case <-late:
			require.FailNow(t, "it has not come true: "+what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// names makes the names of Name differ.
var names atomic.Int64

// Name returns a name for a topic or a consumer group that no other test uses, also when a test runs
// more than once in this process.
func Name(t testing.TB) string {
	t.Helper()
	legal := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '-':
			return r
		}
		return '-'
	}, t.Name())
	const most = 200 // a topic's name has at most 249 characters
	return legal[:min(len(legal), most)] + "-" + strconv.FormatInt(names.Add(1), 10)
}

// startTimeout is how long a shared server may take to start, with a download before it.
const startTimeout = 10 * time.Minute

// shared holds the servers that the tests of a process have in common, each started by the first who
// asks. A start that failed fails for everybody: a second try would take as long and end the same.
type shared[Key comparable, Server interface{ Close() error }] struct {
	start   func(context.Context, Key) (Server, error)
	mu      sync.Mutex // guards servers; not held while one starts
	servers map[Key]func() (Server, error)
}

var sharedPostgres = &shared[int, *PostgresServer]{
	start: func(ctx context.Context, version int) (*PostgresServer, error) {
		return StartPostgres(ctx, PostgresOptions{Version: version})
	},
}

var sharedKafka = &shared[struct{}, *Broker]{
	start: func(ctx context.Context, _ struct{}) (*Broker, error) {
		return StartKafka(ctx, KafkaOptions{})
	},
}

func (s *shared[Key, Server]) get(key Key) (Server, error) {
	s.mu.Lock()
	once, ok := s.servers[key]
	if !ok {
		once = sync.OnceValues(func() (Server, error) {
			// Not the context of the test that came first: the server outlives it.
			ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
			defer cancel()
			return s.start(ctx, key)
		})
		if s.servers == nil {
			s.servers = map[Key]func() (Server, error){}
		}
		s.servers[key] = once
	}
	s.mu.Unlock()
	return once()
}

func (s *shared[Key, Server]) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, get := range s.servers {
		if server, err := get(); err == nil { // who asked for it has reported the error
			errs = append(errs, server.Close())
		}
	}
	s.servers = nil
	return errors.Join(errs...)
}
