package convert

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"auditsink/internal/testkit"
)

// as is the URL for another role, whose statements are parsed anew each time, as the replaced system's are: a prepared one notices that the type of id changes.
func as(db, role string) string {
	return strings.Replace(db, "postgres@", role+"@", 1) + "&default_query_exec_mode=exec"
}

// change does something to audit_log, and the same to the table shadow.
func change(ctx context.Context, conn *pgx.Conn, random *rand.Rand, n int, mine *[]int64) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		var id int64
		var err error
		switch what := random.IntN(10); {
		case what < 6 || len(*mine) == 0: // also into months that were or weren't copied yet
			err = tx.QueryRow(ctx, `INSERT INTO audit_log (timestamp, action, status, details) SELECT now() - make_interval(hours => $1::int), 'written', 'success', '{"live": true}' RETURNING id`,
				random.IntN(2)*random.IntN(20000)).Scan(&id)
			*mine = append(*mine, id)
		case what < 7: // of one that was there before, to another month
			err = tx.QueryRow(ctx, `UPDATE audit_log SET timestamp = timestamp - interval '40 days', outcome_description = 'moved', principal_id = 'p' WHERE id = (SELECT min(id) FROM audit_log WHERE id >= $1::int) RETURNING id`,
				1001+random.IntN(1800)).Scan(&id)
		case what < 8:
			id = (*mine)[random.IntN(len(*mine))]
			_, err = tx.Exec(ctx, `UPDATE audit_log SET status = 'failure' WHERE id = $1`, id)
		case what < 9:
			id = (*mine)[random.IntN(len(*mine))]
			_, err = tx.Exec(ctx, `DELETE FROM audit_log WHERE id = $1`, id)
		default: // the same id again, as another row; then it is rolled back
			id = (*mine)[random.IntN(len(*mine))]
			_, err = tx.Exec(ctx, `DELETE FROM audit_log WHERE id = $1`, id)
			if err == nil {
				_, err = tx.Exec(ctx, `INSERT INTO audit_log (id, timestamp, action, status) VALUES ($1, now() - make_interval(days => $2::int), 'again', 'attempt')`, id, n%50)
			}
			if err == nil && n%2 == 0 {
				return errRolledBack
			}
		}
		if err == nil {
			_, err = tx.Exec(ctx, `DELETE FROM shadow WHERE id = $1`, id)
		}
		if err == nil {
			_, err = tx.Exec(ctx, `INSERT INTO shadow SELECT id, timestamp, ttl, principal_id, organization_id, action, target_resource_type, target_resource_id, status, outcome_description, hash,
				hash_algorithm, event_version, correlation_id, data_classification, retention_policy, processing_latency, archived_at, details FROM audit_log WHERE id = $1`, id)
		}
		if err != nil {
			return err
		}
		return verifyOne(ctx, tx, random, n, id)
	})
}

// verifyOne writes to the log of verifications, and the same to the table shadow_integrity.
func verifyOne(ctx context.Context, tx pgx.Tx, random *rand.Rand, n int, id int64) error {
	sql := []string{
		`INSERT INTO audit_integrity_log (audit_log_id, verification_status) VALUES ($1::int, 'success') RETURNING id`,
		`INSERT INTO audit_integrity_log (audit_log_id, verification_status, verification_details) VALUES ($1::int, 'failure', '{}') RETURNING id`,
		`UPDATE audit_integrity_log SET verified_by = 'somebody' WHERE id = (SELECT min(id) FROM audit_integrity_log WHERE id > $1::int % 1000) RETURNING id`,
		`DELETE FROM audit_integrity_log WHERE id = (SELECT min(id) FROM audit_integrity_log WHERE id > $1::int % 100) RETURNING id`,
	}[random.IntN(2)+random.IntN(2)*(1+n%2)]
	var changed int64
	if err := tx.QueryRow(ctx, sql, id).Scan(&changed); err != nil {
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		return err
	}
	if _, err := tx.Exec(ctx, `DELETE FROM shadow_integrity WHERE id = $1`, changed); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `INSERT INTO shadow_integrity SELECT id, audit_log_id, verification_timestamp, verification_status, verification_details, verified_by, hash_verified, expected_hash
		FROM audit_integrity_log WHERE id = $1`, changed)
	return err
}

var errRolledBack = errors.New("rolled back on purpose")

// breath is a pause of those who do something all the time, without which they leave little of two cores to what is tested.
const breath = time.Millisecond

// write changes rows until stop is closed. A failure ends it: nothing is tried again.
func write(ctx context.Context, db string, seed uint64, stop <-chan struct{}) (changes int, err error) {
	conn, err := pgx.Connect(ctx, as(db, "conv_writer"))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	random := rand.New(rand.NewPCG(seed, 0))
	var mine []int64
	for ; ; changes++ {
		select {
		case <-stop:
			return changes, nil
		case <-ctx.Done():
			return changes, ctx.Err()
		case <-time.After(breath):
		}
		if err := change(ctx, conn, random, changes, &mine); err != nil && !errors.Is(err, errRolledBack) {
			return changes, err
		}
	}
}

// read counts the rows that were there before, which nobody deletes, and requires all of them each time.
func read(ctx context.Context, db string, least int, stop <-chan struct{}) (err error) {
	conn, err := pgx.Connect(ctx, as(db, "conv_writer"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	for {
		select {
		case <-stop:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * breath):
		}
		var n int
		if err := conn.QueryRow(ctx, `SELECT count(*) FROM audit_log WHERE action NOT IN ('written', 'again')`).Scan(&n); err != nil {
			return err
		}
		if n != least {
			return fmt.Errorf("a reader saw %d rows of %d", n, least)
		}
	}
}

// TestConvertWhileInUse: two who write and one who reads, with no rights but on audit_log, notice nothing; and what they wrote is there.
func TestConvertWhileInUse(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := old(t, db)
		roles(t, conn, "conv_writer")
		testkit.Exec(t, conn, `ALTER TABLE audit_integrity_log DROP CONSTRAINT audit_integrity_log_audit_log_id_fkey; CREATE TABLE shadow_integrity (LIKE audit_integrity_log);
			INSERT INTO shadow_integrity SELECT * FROM audit_integrity_log; CREATE TABLE shadow (LIKE audit_log); INSERT INTO shadow SELECT * FROM audit_log; CREATE INDEX ON shadow (id);
			GRANT SELECT, INSERT, UPDATE, DELETE ON audit_log, shadow, audit_integrity_log, shadow_integrity TO conv_writer; GRANT USAGE ON SEQUENCE audit_log_id_seq, audit_integrity_log_id_seq TO conv_writer`)
		least := len(content(t, conn, "audit_log"))
		stop := make(chan struct{})
		group, ctx := errgroup.WithContext(t.Context())
		total := make([]int, 2)
		for i := range total {
			group.Go(func() (err error) {
				total[i], err = write(ctx, db, uint64(i), stop)
				return err
			})
		}
		group.Go(func() error { return read(ctx, db, least, stop) })
		var s Summary
		group.Go(func() (err error) {
			defer close(stop)
			o := options(db)
			o.Pause = 5 * time.Millisecond
			if s, err = Run(ctx, o); err != nil {
				return err
			}
			return sleep(ctx, 300*time.Millisecond) // they go on
		})
		require.NoError(t, group.Wait())
		require.Positive(t, total[0]*total[1])
		require.Equal(t, content(t, conn, "shadow"), content(t, conn, "audit_log"))
		integrity := `SELECT ROW(id::bigint, audit_log_id::bigint, verification_timestamp, verification_status, verification_details, verified_by)::text FROM `
		require.Equal(t, testkit.Column[string](t, conn, integrity+`shadow_integrity ORDER BY id`), testkit.Column[string](t, conn, integrity+`audit_integrity_log ORDER BY id`))
		require.Equal(t, []int64{s.Rows}, testkit.Column[int64](t, conn, `SELECT count(*) FROM audit_replaced.audit_log`))
		_, err := DropReplaced(t.Context(), options(db)) // so the sums were kept up with every change
		require.NoError(t, err)
		t.Logf("%d changes", total[0]+total[1])
	})
}

// A reader's long transaction holds the swap up, and no writer with it; then it goes through.
func TestSwapWaitsForALongReader(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := old(t, db)
		reader, err := testkit.Connect(t, db).Begin(t.Context())
		require.NoError(t, err)
		_, err = reader.Exec(t.Context(), `SELECT count(*) FROM audit_log`)
		require.NoError(t, err)
		waiting, converted := make(chan string, 100), make(chan error, 1)
		go func() {
			o := options(db)
			o.Report = func(p Progress) {
				if p.Stage == "swapping" && p.Note != "" {
					select {
					case waiting <- p.Note:
					default:
					}
				}
			}
			_, err := Run(t.Context(), o)
			converted <- err
		}()
		testkit.Exec(t, conn, `SET lock_timeout = '3s'`)
		written := 0
		for tries := 0; tries < 3; written++ { // one comes while the lock is waited for
			select {
			case note := <-waiting:
				require.Contains(t, note, "idle in transaction")
				tries++
			case <-time.After(breath):
			}
			testkit.Exec(t, conn, `INSERT INTO audit_log (timestamp, action, status) VALUES (now(), 'meanwhile', 'success')`)
		}
		testkit.Exec(t, conn, `UPDATE audit_log SET id = id + 9000000 WHERE id IN (2, 3, 5)`)
		require.NoError(t, reader.Rollback(t.Context()))
		require.NoError(t, <-converted)
		require.Equal(t, content(t, conn, "audit_replaced.audit_log"), content(t, conn, "audit_log"))
		require.Equal(t, []int{written}, testkit.Column[int](t, conn, `SELECT count(*) FROM audit_log WHERE action = 'meanwhile'`))
	})
}

// A transaction that has written before the triggers were there is waited for, so that its rows aren't missed.
func TestTriggersWaitForOpenTransactions(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := old(t, db)
		writer, err := testkit.Connect(t, db).Begin(t.Context())
		require.NoError(t, err)
		_, err = writer.Exec(t.Context(), `INSERT INTO audit_log (id, timestamp, action, status) VALUES (5, now(), 'late', 'success') ON CONFLICT (id) DO UPDATE SET action = 'late'`)
		require.NoError(t, err)
		waiting, converted := make(chan struct{}, 1), make(chan error, 1)
		go func() {
			o := options(db)
			o.Report = func(p Progress) {
				if p.Stage == "beginning to note changes" && p.Note != "" {
					select {
					case waiting <- struct{}{}:
					default:
					}
				}
			}
			_, err := Run(t.Context(), o)
			converted <- err
		}()
		<-waiting
		testkit.Exec(t, conn, `SET lock_timeout = '5s'; INSERT INTO audit_log (timestamp, action, status) VALUES (now(), 'meanwhile', 'success')`)
		require.NoError(t, writer.Commit(t.Context()))
		require.NoError(t, <-converted)
		require.Equal(t, []string{"late", "meanwhile"}, testkit.Column[string](t, conn, `SELECT action::text FROM audit_log WHERE action IN ('late', 'meanwhile') ORDER BY 1`))
	})
}

// The answer to the swap's COMMIT is lost, or the COMMIT itself: what is there decides.
func TestSwapCommitUnanswered(t *testing.T) {
	for _, version := range []int{15, 18} {
		for _, forward := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d reached the server %t", version, forward), func(t *testing.T) {
				db := testkit.Postgres(t, version)
				conn := old(t, db)
				before := content(t, conn, "audit_log")
				cutter := testkit.OwnCutter(t, testkit.PostgresServerFor(t, version).Address())
				through, err := cutter.URL(db)
				require.NoError(t, err)
				o := options(through)
				o.Report = func(p Progress) {
					if p.Stage == "swapping" {
						cutter.Once(testkit.Cut{Forward: forward})
					}
				}
				s, err := Run(t.Context(), o)
				require.Equal(t, 1, cutter.Cuts())
				require.Equal(t, before, content(t, conn, "audit_log"))
				if forward {
					require.NoError(t, err)
					require.EqualValues(t, len(before), s.Rows)
				} else {
					require.ErrorContains(t, err, "nothing was swapped")
					s, err := Run(t.Context(), options(db))
					require.NoError(t, err)
					require.False(t, s.Nothing)
					require.Equal(t, before, content(t, conn, "audit_log"))
				}
				requireFresh(t, conn)
			})
		}
	}
}
