package postgres_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"auditsink/internal/postgres"
	"auditsink/internal/testkit"
)

// patience is how long a test waits for what must come: far more than it takes.
const patience = time.Minute

// name tells the sessions of the pool under test from the test's own.
const name = "pool-under-test"

func open(t *testing.T, o postgres.Options) *postgres.Pool {
	t.Helper()
	pool, err := postgres.Open(t.Context(), o)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// observer counts the sessions of the pool under test.
type observer struct {
	*testing.T
	conn *pgx.Conn
}

func observe(t *testing.T, url string) *observer {
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close(context.WithoutCancel(t.Context()))) })
	return &observer{t, conn}
}

func (o *observer) sessions() (n int) {
	o.Helper()
	require.NoError(o, o.conn.QueryRow(o.Context(),
		`SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()`, name).Scan(&n))
	return n
}

// eventually waits until a condition holds, for as long as a test may.
func (o *observer) eventually(what string, cond func() bool) {
	o.Helper()
	testkit.Eventually(o, patience, what, cond)
}

func TestPoolOpensTheMinimumByItself(t *testing.T) {
	url := testkit.Postgres(t, 15)
	o := observe(t, url)
	open(t, postgres.Options{URL: url + "&application_name=" + name, MinConns: 3, MaxConns: 5})
	o.eventually("three sessions", func() bool { return o.sessions() == 3 })
}

func TestPoolKeepsWithinItsBounds(t *testing.T) {
	url := testkit.Postgres(t, 15)
	o := observe(t, url)
	const least, most = 2, 3 // the driver's own default is at least 4
	var acquires atomic.Int32
	pool := open(t, postgres.Options{
		URL: url + "&application_name=" + name, MinConns: least, MaxConns: most, IdleTimeout: 300 * time.Millisecond,
		Acquired: func(seconds float64) {
			if seconds >= 0 {
				acquires.Add(1)
			}
		},
	})
	const users = 4 * most
	var held, highest atomic.Int32
	busy := make(chan struct{})
	var once sync.Once
	group, ctx := errgroup.WithContext(t.Context())
	for range users {
		group.Go(func() error {
			conn, err := pool.Acquire(ctx)
			if err != nil {
				return err
			}
			defer conn.Release()
			n := held.Add(1)
			defer held.Add(-1)
			for old := highest.Load(); n > old && !highest.CompareAndSwap(old, n); old = highest.Load() {
			}
			if n == most { // all are taken, and the others wait
				once.Do(func() { close(busy) })
			}
			select {
			case <-busy:
			case <-ctx.Done():
				return ctx.Err()
			}
			_, err = conn.Exec(ctx, `SELECT pg_sleep(0.02)`)
			return err
		})
	}
	<-busy
	require.LessOrEqual(t, o.sessions(), most)
	require.NoError(t, group.Wait())
	require.EqualValues(t, most, highest.Load())
	require.EqualValues(t, users, acquires.Load())
	require.LessOrEqual(t, o.sessions(), most)
	o.eventually("the idle ones above the minimum are closed", func() bool { return o.sessions() == least })
	// And the minimum stays, though it is idle too.
	o.eventually("some rounds of the health check", func() bool {
		require.GreaterOrEqual(t, o.sessions(), 0)
		return pool.Stat().MaxIdleDestroyCount() >= most-least
	})
	o.eventually("two sessions", func() bool { return o.sessions() == least })
}

func TestAcquireTimeout(t *testing.T) {
	var waited []float64
	pool := open(t, postgres.Options{
		URL: testkit.Postgres(t, 15), MaxConns: 2, AcquireTimeout: 50 * time.Millisecond,
		Acquired: func(seconds float64) { waited = append(waited, seconds) },
	})
	var held []*pgxpool.Conn
	for range 2 {
		// The first is made meanwhile, which may take longer than the timeout on a busy machine.
		var conn *pgxpool.Conn
		observe(t, testkit.Postgres(t, 15)).eventually("a connection", func() (ok bool) {
			var err error
			conn, err = pool.Acquire(t.Context())
			return err == nil
		})
		held = append(held, conn)
	}
	waited = nil
	_, err := pool.Acquire(t.Context())
	require.ErrorIs(t, err, postgres.ErrAcquireTimeout)
	require.Contains(t, err.Error(), "50ms")
	require.Contains(t, postgres.Explain(err).Error(), "AUDITSINK_POOL_MAX_CONNS")
	require.ErrorIs(t, postgres.Explain(err), postgres.ErrAcquireTimeout)
	require.Equal(t, postgres.Transient, postgres.Classify(err))
	require.Len(t, waited, 1, "an acquire that failed is observed too")
	require.GreaterOrEqual(t, waited[0], 0.05)

	// The caller's own end is not the pool's timeout.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = pool.Acquire(ctx)
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, postgres.ErrAcquireTimeout)

	held[0].Release()
	conn, err := pool.Acquire(t.Context())
	require.NoError(t, err)
	conn.Release()
	held[1].Release()
}

// TestAcquireFromAServerThatHangs: nobody is told to raise the limit of connections where there is none.
func TestAcquireFromAServerThatHangs(t *testing.T) {
	server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 15})
	pool := open(t, postgres.Options{URL: server.URL("postgres"), MaxConns: 5, AcquireTimeout: 200 * time.Millisecond})
	require.NoError(t, server.Pause())
	_, err := pool.Acquire(t.Context())
	require.NoError(t, server.Continue())
	require.NotErrorIs(t, err, postgres.ErrAcquireTimeout)
	require.ErrorContains(t, err, "200ms")
	require.NotContains(t, postgres.Explain(err).Error(), "all connections are busy")
	require.Contains(t, postgres.Explain(err).Error(), "can't be reached")
	require.Equal(t, postgres.Transient, postgres.Classify(err))
}

func TestPrepared(t *testing.T) {
	for name, prepared := range map[string]bool{"on": true, "off": false} {
		t.Run(name, func(t *testing.T) {
			pool := open(t, postgres.Options{URL: testkit.Postgres(t, 15), MaxConns: 1, Prepared: prepared})
			conn, err := pool.Acquire(t.Context())
			require.NoError(t, err)
			defer conn.Release()
			for n := range 3 {
				var got int
				require.NoError(t, conn.QueryRow(t.Context(), `SELECT $1::int + 1`, n).Scan(&got))
				require.Equal(t, n+1, got)
			}
			var statements int
			// As a simple query, it leaves no statement of its own.
			require.NoError(t, conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_prepared_statements`, pgx.QueryExecModeSimpleProtocol).Scan(&statements))
			if prepared {
				require.Positive(t, statements)
			} else {
				require.Zero(t, statements)
			}
		})
	}
}

func TestSessionsAreNamed(t *testing.T) {
	for _, c := range []struct{ inURL, given, want string }{
		{"", "", "auditsink"},
		{"", "auditsink reads", "auditsink reads"},
		{"&application_name=mine", "auditsink reads", "mine"},
	} {
		pool := open(t, postgres.Options{URL: testkit.Postgres(t, 15) + c.inURL, Application: c.given, MaxConns: 1})
		var application string
		require.NoError(t, pool.QueryRow(t.Context(), `SHOW application_name`).Scan(&application))
		require.Equal(t, c.want, application)
	}
}

func TestOpenRefuses(t *testing.T) {
	const secret = "correct-horse-battery"
	for _, url := range []string{"postgres://u:" + secret + "@h:port/d", "postgres://u:" + secret + "%zz@h/d", "host=h password=" + secret + " port=many", "postgres://u:" + secret + "@h/d?sslmode=perhaps"} {
		_, err := postgres.Open(t.Context(), postgres.Options{URL: url})
		require.ErrorContains(t, err, "read the connection URL")
		require.NotContains(t, err.Error(), secret)
		_, err = postgres.Open(t.Context(), postgres.Options{URL: url, SSLMode: "nonsense"})
		require.Error(t, err)
		require.NotContains(t, err.Error(), secret)
	}
}

// TestWithSSLMode looks at what the client makes of the result. A mode that was asked for must never get lost: the connection would
// be less safe than the operator believes.
func TestWithSSLMode(t *testing.T) {
	for _, conn := range []string{
		"postgres://u:p%40%2Fw@h:5433/d?application_name=a%20b",
		"postgresql://u:p%40%2Fw@h:5433/d?sslmode=disable&application_name=a%20b",
		"postgres://u:p%40%2Fw@h:5433,h2:5434/d?sslmode=disable&application_name=a%20b",
		"postgres://u:p%40%2Fw@[::1]:5433/d?application_name=a%20b",
		"host=h port=5433 user=u password=p@/w dbname=d application_name='a b'",
		"host=h port=5433 user=u password=p@/w dbname=d sslmode=disable application_name='a b'",
		"host=h port=5433 user=u password=p@/w dbname=d application_name='a b' options='-c search_path=x://y'",
	} {
		t.Run(conn, func(t *testing.T) {
			require.Equal(t, conn, postgres.WithSSLMode(conn, ""))
			for mode, withTLS := range map[string]bool{"disable": false, "require": true, "verify-full": true} {
				got := postgres.WithSSLMode(conn, mode)
				cfg, err := pgx.ParseConfig(got)
				require.NoError(t, err)
				require.Equal(t, withTLS, cfg.TLSConfig != nil, got)
				for _, other := range cfg.Fallbacks {
					require.Equal(t, withTLS, other.TLSConfig != nil, "falls back on %+v", other)
				}
				if withTLS {
					require.Equal(t, mode == "require", cfg.TLSConfig.InsecureSkipVerify)
				}
				require.EqualValues(t, 5433, cfg.Port)
				require.Equal(t, []string{"u", "p@/w", "d", "a b"}, []string{cfg.User, cfg.Password, cfg.Database, cfg.RuntimeParams["application_name"]})
			}
		})
	}
}

func TestWait(t *testing.T) {
	server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 15})
	pool := open(t, postgres.Options{URL: server.URL("postgres"), MaxConns: 2, AcquireTimeout: 5 * time.Second})
	require.NoError(t, server.Stop())

	t.Run("gives up", func(t *testing.T) {
		var told []error
		err := pool.Wait(t.Context(), 3, time.Millisecond, func(err error) { told = append(told, err) })
		require.Error(t, err)
		require.Len(t, told, 2, "of three attempts, two are followed by another")
		require.Equal(t, postgres.Transient, postgres.Classify(err))
		require.Contains(t, postgres.Explain(err).Error(), "can't be reached")
	})
	t.Run("ends with the context", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		enough := errors.New("enough")
		err := pool.Wait(ctx, 0, time.Hour, func(error) { cancel(enough) })
		require.ErrorIs(t, err, enough)
	})
	t.Run("a server that comes up later", func(t *testing.T) {
		restarted := false
		require.NoError(t, pool.Wait(t.Context(), 0, 10*time.Millisecond, func(error) {
			if !restarted {
				restarted = true
				require.NoError(t, server.Restart(t.Context()))
			}
		}))
		require.True(t, restarted)
	})
	t.Run("connections from before a restart", func(t *testing.T) {
		require.NoError(t, server.Restart(t.Context()))
		require.NoError(t, pool.Wait(t.Context(), 10, 10*time.Millisecond, func(error) {}))
	})
	t.Run("a fatal error at once", func(t *testing.T) {
		missing := open(t, postgres.Options{URL: server.URL("missing"), MaxConns: 1})
		err := missing.Wait(t.Context(), 0, time.Hour, func(err error) { t.Errorf("waits for %v", err) })
		require.Equal(t, postgres.Fatal, postgres.Classify(err))
	})
}

func TestWritable(t *testing.T) {
	url := testkit.Postgres(t, 15)
	require.NoError(t, open(t, postgres.Options{URL: url, MaxConns: 1}).Writable(t.Context()))
	err := open(t, postgres.Options{URL: url + "&default_transaction_read_only=on", MaxConns: 1}).Writable(t.Context())
	require.True(t, postgres.IsReadOnly(err), "%v", err)
	require.Equal(t, postgres.Transient, postgres.Classify(err))
	require.Contains(t, postgres.Explain(err).Error(), "must name the primary")
}
