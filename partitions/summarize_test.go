package partitions

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestSummarize: the new pages of partitions that take rows are summarized, of others not; and nothing is waited for.
func TestSummarize(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, url string) {
		db := open(t, url)
		month(t, db, "2025-10-01")
		month(t, db, "2025-11-01")
		month(t, db, "2025-12-01")
		for _, m := range []string{"10", "11", "12"} {
			exec(t, db, `CREATE INDEX brin_`+m+` ON audit_log_2025_`+m+` USING brin (timestamp) WITH (pages_per_range = 1)`)
			exec(t, db, `INSERT INTO audit_log (timestamp, action, status) SELECT '2025-`+m+`-05 00:00+00', 'a', 'success' FROM generate_series(1, 2000)`)
		}
		term := lead(t, db, "me")
		tx := begin(t, db)
		exec(t, tx, `LOCK TABLE audit_log_2025_11 IN SHARE UPDATE EXCLUSIVE MODE`)
		s := &Summarizer{DB: db, Now: func() time.Time { return at("2025-11-20") }}
		left, err := s.Summarize(t.Context(), term)
		require.NoError(t, err)
		require.Equal(t, []Care{{Partition: "audit_log_2025_11", Kind: "summarize", Left: "somebody else has it locked"}}, left)
		require.NoError(t, tx.Rollback(t.Context()))
		left, err = s.Summarize(t.Context(), term)
		require.NoError(t, err)
		require.Empty(t, left)
		for m, open := range map[string]bool{"10": true, "11": false, "12": true} {
			require.Equal(t, open, column[int](t, db, `SELECT brin_summarize_new_values('brin_`+m+`')`)[0] > 0, m)
		}
		lead(t, db, "another")
		fill(t, db, "2025-11-06", 2000)
		_, err = s.Summarize(t.Context(), term)
		require.ErrorIs(t, err, ErrDeposed)
	})
}

// TestSummarizeWhatIsNew: an index whose table hasn't grown isn't looked at, so that its lock is asked for by nobody; once there are new pages, it is.
func TestSummarizeWhatIsNew(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, url string) {
		db := open(t, url)
		month(t, db, "2025-11-01")
		exec(t, db, `CREATE INDEX new_brin ON audit_log_2025_11 USING brin (timestamp) WITH (pages_per_range = 1)`)
		fill(t, db, "2025-11-05", 2000)
		term := lead(t, db, "me")
		s := &Summarizer{DB: db, Now: func() time.Time { return at("2025-11-20") }}
		unsummarized := func() int { return column[int](t, db, `SELECT brin_summarize_new_values('new_brin')`)[0] }
		summarize := func(left int) {
			t.Helper()
			all, err := s.Summarize(t.Context(), term)
			require.NoError(t, err)
			require.Len(t, all, left)
		}
		summarize(0)
		require.Zero(t, unsummarized())
		tx := begin(t, db)
		exec(t, tx, `LOCK TABLE audit_log_2025_11 IN SHARE UPDATE EXCLUSIVE MODE`)
		summarize(0)
		fill(t, db, "2025-11-06", 2000)
		summarize(1)
		summarize(1) // what was left isn't forgotten
		require.NoError(t, tx.Rollback(t.Context()))
		summarize(0)
		require.Zero(t, unsummarized())
	})
}

// TestSummarizerRuns: new pages are summarized within the term, again and again, and not after it; an error is told once.
func TestSummarizerRuns(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, url string) {
		db := open(t, url)
		month(t, db, "2025-11-01")
		exec(t, db, `CREATE INDEX ran_brin ON audit_log_2025_11 USING brin (timestamp) WITH (pages_per_range = 1)`)
		term := lead(t, db, "me")
		told := &built{}
		s := &Summarizer{DB: db, Now: func() time.Time { return at("2025-11-20") }, Every: 10 * time.Millisecond, Told: told.told}
		ctx, cancel := context.WithCancelCause(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx, term) }()
		for range 2 {
			fill(t, db, "2025-11-05", 2000)
			pages := column[int](t, db, `SELECT pg_relation_size('audit_log_2025_11') / 8192`)[0]
			require.Eventually(t, func() bool {
				return column[int](t, db, `SELECT brin_summarize_new_values('ran_brin')`)[0] == 0
			}, time.Minute, 20*time.Millisecond, "of %d pages", pages)
		}
		over := errors.New("over")
		cancel(over)
		require.ErrorIs(t, <-ended, over)

		closed := open(t, url)
		closed.Close()
		s.DB = closed
		ctx, cancel = context.WithCancelCause(t.Context())
		go func() { ended <- s.Run(ctx, term) }()
		require.Eventually(t, func() bool { told.mu.Lock(); defer told.mu.Unlock(); return len(told.errs) > 0 }, time.Minute, time.Millisecond)
		cancel(over)
		require.ErrorIs(t, <-ended, over)
		require.Len(t, told.errs, 1)

		s.DB = db
		lead(t, db, "another")
		fill(t, db, "2025-11-06", 2000)
		require.ErrorIs(t, s.Run(t.Context(), term), ErrDeposed)
	})
}
