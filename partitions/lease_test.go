package partitions

import (
	"context"
	"errors"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
	"auditsink/migrations"
)

// short is a lease for tests that wait until it has expired.
const short = time.Second

// site is a database, and how replicas get to it.
type site struct {
	db         string // the server's own URL
	url        string
	parameters []string
}

// sites runs a test on the oldest and the newest Postgres, directly and through pgbouncer.
func sites(t *testing.T, test func(t *testing.T, s site)) {
	t.Helper()
	versions(t, func(t *testing.T, db string) {
		t.Run("direct", func(t *testing.T) { test(t, site{db: db, url: db}) })
	})
	versions(t, func(t *testing.T, db string) {
		t.Run("pgbouncer", func(t *testing.T) {
			test(t, site{db: db, url: testkit.OwnPgBouncer(t, db), parameters: []string{"default_query_exec_mode", "exec"}})
		})
	})
}

// connect opens a replica's pool.
func (s site) connect(t *testing.T) *pgxpool.Pool {
	t.Helper()
	return open(t, s.url, s.parameters...)
}

// through returns the site behind a network of its own.
func (s site) through(t *testing.T) (site, *testkit.Proxy) {
	t.Helper()
	u, err := url.Parse(s.url)
	require.NoError(t, err)
	proxy := testkit.OwnProxy(t, u.Host)
	s.url, err = proxy.URL(s.url)
	require.NoError(t, err)
	return s, proxy
}

// replica is a process that takes part in the election, for a test.
type replica struct {
	stop context.CancelFunc // as SIGTERM does
	done chan struct{}
	err  error // what Lead returned, once done

	mu      sync.Mutex // guards what follows
	leading *Term      // nil while it doesn't
	terms   []Term
	ends    []error // of the terms
	trouble []error
}

// replicate starts a replica. work nil waits for the end of the term.
func replicate(t *testing.T, db *pgxpool.Pool, duration time.Duration, work func(context.Context, Term) error) *replica {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	r := &replica{stop: stop, done: make(chan struct{})}
	if work == nil {
		work = untilOver
	}
	go func() {
		defer close(r.done)
		r.err = r.lease(duration).Lead(ctx, db, work)
	}()
	t.Cleanup(r.quit)
	return r
}

func untilOver(ctx context.Context, _ Term) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

// lease tells the replica of what it does.
func (r *replica) lease(duration time.Duration) Lease {
	locked := func(f func()) {
		r.mu.Lock()
		defer r.mu.Unlock()
		f()
	}
	return Lease{
		Duration: duration, Holder: "replica",
		Began:   func(term Term) { locked(func() { r.leading, r.terms = &term, append(r.terms, term) }) },
		Ended:   func(_ Term, err error) { locked(func() { r.leading, r.ends = nil, append(r.ends, err) }) },
		Trouble: func(err error) { locked(func() { r.trouble = append(r.trouble, err) }) },
	}
}

// quit is stop, and waits until it has come to its end.
func (r *replica) quit() {
	r.stop()
	<-r.done
}

func (r *replica) term() (t Term) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leading != nil {
		t = *r.leading
	}
	return t
}

func (r *replica) leads() bool { return r.term().Number > 0 }

// ended returns how the nth term of the replica ended.
func (r *replica) ended(t *testing.T, n int) error {
	t.Helper()
	eventually(t, "the term ends", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.ends) > n
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ends[n]
}

func (r *replica) troubles() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]error(nil), r.trouble...)
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, testTimeout, testTick, what)
}

// renewals waits until the lease has been renewed n times.
func renewals(t *testing.T, db *pgxpool.Pool, n int) {
	t.Helper()
	last := time.Time{}
	for range n {
		eventually(t, "the lease is renewed", func() bool {
			now := column[time.Time](t, db, `SELECT coalesce(renewed_at, 'epoch') FROM audit_leader`)[0]
			defer func() { last = now }()
			return !now.Equal(last) && !last.IsZero()
		})
	}
}

// oracleTable makes every transaction of the leader confirm its term and then say it where all can see: never a lower one after a higher.
const oracleTable = `CREATE TABLE oracle (term bigint NOT NULL, times bigint NOT NULL); INSERT INTO oracle VALUES (0, 0)`

// obey is the leader's work for the oracle, until the term is over.
func obey(db *pgxpool.Pool, violated *sync.Map) func(context.Context, Term) error {
	return func(ctx context.Context, term Term) error {
		for {
			err := confirmed(ctx, db, term, func(say func(sql string, args ...any) (int64, error)) error {
				n, err := say(`UPDATE oracle SET term = $1, times = times + 1 WHERE term <= $1`, term.Number)
				if err == nil && n == 0 {
					violated.Store(term.Number, true)
				}
				return err
			})
			switch {
			case errors.Is(err, ErrDeposed):
				return err
			case ctx.Err() != nil:
				return context.Cause(ctx)
			}
			_ = sleep(ctx, 5*time.Millisecond) // the next turn sees why
		}
	}
}

// confirmed does something in a transaction after the term was confirmed. (The maintainer confirms last. Here it is what comes after that must
// not be seen after the next leader's.)
func confirmed(ctx context.Context, db *pgxpool.Pool, term Term, do func(say func(string, ...any) (int64, error)) error) error {
	tx, err := db.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // it is over, or as good as
	if err := term.confirm(ctx, tx); err != nil {
		return err
	}
	err = do(func(sql string, args ...any) (int64, error) {
		tag, err := tx.Exec(ctx, sql, args...)
		return tag.RowsAffected(), err
	})
	if err != nil {
		return err
	}
	return tx.Commit(ctx)
}

// Replicas that come and go, are cut off and come back, and operators who seize the lease: none ever acts after a later leader has.
func TestOneLeadsAtATime(t *testing.T) {
	sites(t, func(t *testing.T, s site) {
		watch := open(t, s.db)
		exec(t, watch, oracleTable)
		violated := &sync.Map{}
		far, network := s.through(t)
		join := func(s site) *replica {
			pool := s.connect(t)
			return replicate(t, pool, short, obey(pool, violated))
		}
		all := []*replica{join(far), join(far), join(s), join(s), join(s)}
		// progress waits until a leader has acted from now on.
		progress := func() {
			acts := func() int64 { return column[int64](t, watch, `SELECT times FROM oracle`)[0] }
			before := acts()
			eventually(t, "somebody leads and acts", func() bool { return acts() > before+3 })
		}
		progress()
		for range 3 {
			network.CutOff()
			progress()
			all[2].quit()
			all = append(append(all[:2:2], all[3:]...), join(s))
			progress()
			network.Heal()
			pool := s.connect(t)
			err := (&replica{}).lease(short).Seize(t.Context(), pool, func(ctx context.Context, term Term) error {
				soon, enough := context.WithTimeout(ctx, short/2)
				defer enough()
				return obey(pool, violated)(soon, term)
			})
			require.ErrorIs(t, err, context.DeadlineExceeded)
			progress()
		}
		for _, r := range all {
			r.quit()
		}
		violated.Range(func(term, _ any) bool {
			t.Errorf("term %d acted after a later one", term)
			return true
		})
		require.Greater(t, column[int64](t, watch, `SELECT term FROM audit_leader`)[0], int64(4))
	})
}

// The lease is far longer than the test waits, so it is the hand-over that lets the next one begin.
func TestHandOver(t *testing.T) {
	sites(t, func(t *testing.T, s site) {
		watch := open(t, s.db)
		var tidied atomic.Bool
		first := replicate(t, s.connect(t), time.Hour, func(ctx context.Context, _ Term) error {
			<-ctx.Done()
			require.Equal(t, []bool{true}, column[bool](t, watch, `SELECT expires_at > clock_timestamp() FROM audit_leader`), "not before work has ended")
			tidied.Store(true)
			return context.Cause(ctx)
		})
		eventually(t, "the first leads", first.leads)
		second := replicate(t, s.connect(t), time.Hour, nil)
		first.quit()
		eventually(t, "the second leads", second.leads)
		require.True(t, tidied.Load())
		require.NoError(t, first.ended(t, 0))
		require.NoError(t, first.err)
		require.Equal(t, first.terms[0].Number+1, second.term().Number)
		require.NotEqual(t, first.terms[0].Holder, second.term().Holder, "they have the same name")
		second.quit()
		require.Equal(t, []bool{true}, column[bool](t, watch, `SELECT holder IS NULL AND expires_at <= clock_timestamp() FROM audit_leader`))
	})
}

// Without a word from the leader another one leads when the lease has expired. The old one knows by then, and is a candidate when it is back.
func TestLeaderCutOff(t *testing.T) {
	sites(t, func(t *testing.T, s site) {
		far, network := s.through(t)
		var own atomic.Pointer[Term]
		first := replicate(t, far.connect(t), short, func(ctx context.Context, term Term) error {
			own.Store(&term)
			return untilOver(ctx, term)
		})
		eventually(t, "the first leads", first.leads)
		second := replicate(t, s.connect(t), short, func(ctx context.Context, term Term) error {
			if own.Load().own.left() > 0 {
				t.Error("the first still trusts its lease")
			}
			return untilOver(ctx, term)
		})
		network.CutOff()
		eventually(t, "the second leads", second.leads)
		err := first.ended(t, 0)
		require.ErrorIs(t, err, ErrDeposed)
		require.ErrorIs(t, err, ErrOverdue)
		require.False(t, first.leads())

		network.Heal()
		eventually(t, "it hears of the database again", func() bool { all := first.troubles(); return len(all) > 1 && all[len(all)-1] == nil })
		term := second.term().Number
		require.Equal(t, int64(2), term, "its coming back disturbs nobody")
		second.quit()
		eventually(t, "the first leads again", first.leads)
		require.Equal(t, term+1, first.term().Number)
	})
}

// With the database away for longer than the lease nobody leads; each tells of it once.
func TestDatabaseAway(t *testing.T) {
	server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 18})
	db, err := server.CreateDatabase(t.Context())
	require.NoError(t, err)
	_, err = migrations.Apply(t.Context(), db)
	require.NoError(t, err)
	one, two := replicate(t, open(t, db), short, nil), replicate(t, open(t, db), short, nil)
	eventually(t, "one leads", func() bool { return one.leads() != two.leads() })
	leader, other := one, two
	if two.leads() {
		leader, other = two, one
	}
	require.NoError(t, server.Stop())
	require.ErrorIs(t, leader.ended(t, 0), ErrOverdue)
	for _, r := range []*replica{leader, other} {
		eventually(t, "it tells of the trouble", func() bool { return len(r.troubles()) > 0 })
	}
	require.NoError(t, server.Restart(t.Context()))
	eventually(t, "one leads", func() bool { return one.leads() != two.leads() })
	for _, r := range []*replica{leader, other} {
		eventually(t, "it tells of its end", func() bool { all := r.troubles(); return all[len(all)-1] == nil })
		require.Len(t, r.troubles(), 2)
	}
	require.Equal(t, int64(2), max(one.term().Number, two.term().Number))
}

// Nobody takes over from a transaction that has confirmed its term, and none does that after a takeover.
func TestTakeoverAndTransactions(t *testing.T) {
	sites(t, func(t *testing.T, s site) {
		watch := open(t, s.db)
		exec(t, watch, `CREATE TABLE done (what text)`)
		pool := s.connect(t)
		leader := replicate(t, pool, time.Minute, nil)
		eventually(t, "it leads", leader.leads)
		term := leader.term()

		tx := begin(t, pool)
		exec(t, tx, `INSERT INTO done VALUES ('confirmed')`)
		require.NoError(t, term.confirm(t.Context(), tx))
		operator := make(chan []string, 1)
		over := make(chan error, 1)
		ctx, enough := context.WithCancel(t.Context())
		go func() {
			over <- (&replica{}).lease(time.Minute).Seize(ctx, s.connect(t), func(ctx context.Context, _ Term) error {
				found := []string(nil)
				rows, err := watch.Query(ctx, `SELECT what FROM done`)
				if err == nil {
					found, err = pgx.CollectRows(rows, pgx.RowTo[string])
				}
				operator <- found
				<-ctx.Done()
				return err
			})
		}()
		eventually(t, "the takeover waits for the transaction", func() bool {
			return column[bool](t, watch, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%UPDATE audit_leader%')`)[0]
		})
		late := begin(t, pool)
		exec(t, late, `INSERT INTO done VALUES ('late')`)
		require.Empty(t, operator)
		require.NoError(t, tx.Commit(t.Context()))
		require.Equal(t, []string{"confirmed"}, <-operator)

		require.ErrorIs(t, term.confirm(t.Context(), late), ErrDeposed)
		require.ErrorIs(t, term.check(t.Context(), pool), ErrDeposed)
		enough()
		require.NoError(t, <-over)
		// It hears of it with its next renewal only, far from now.
		require.Equal(t, term.Number, leader.term().Number)
	})
}
