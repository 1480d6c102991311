package convert

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
)

// What is set for the database or the role must not end the conversion, nor change how rows are compared.
func TestSettingsOfTheDatabase(t *testing.T) {
	for _, test := range []struct {
		version  int
		settings []string
	}{
		{15, []string{"statement_timeout = '1s'", "idle_session_timeout = '1s'", "lock_timeout = '1ms'"}},
		{15, []string{"standard_conforming_strings = off", "datestyle = 'SQL, DMY'", "timezone = 'Asia/Kolkata'", "enable_indexscan = off"}},
		{18, []string{"transaction_timeout = '1s'", "default_transaction_isolation = 'serializable'"}},
	} {
		t.Run(fmt.Sprint(test.version, test.settings), func(t *testing.T) {
			db := testkit.Postgres(t, test.version)
			conn := old(t, db)
			before := content(t, conn, "audit_log")
			for _, setting := range test.settings {
				testkit.Exec(t, conn, `ALTER DATABASE `+testkit.Column[string](t, conn, `SELECT quote_ident(current_database())`)[0]+` SET `+setting)
			}
			o := options(db)
			o.Report = func(p Progress) {
				// Between two statements, and in the midst of a transaction.
				if p.Stage == "comparing both tables" || p.Stage == "looking at the table" {
					testkit.Exec(t, conn, `SELECT pg_sleep(1.2)`)
				}
			}
			_, err := Run(t.Context(), o)
			require.NoError(t, err)
			require.Equal(t, before, content(t, conn, "audit_log"))
			_, err = DropReplaced(t.Context(), options(db))
			require.NoError(t, err)
		})
	}
}

// A database whose transactions are serializable by default: a row that was committed while the triggers waited for its writer is copied too.
func TestTriggersWaitThoughSerializable(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := old(t, db)
		testkit.Exec(t, conn, `ALTER DATABASE `+testkit.Column[string](t, conn, `SELECT quote_ident(current_database())`)[0]+` SET default_transaction_isolation = 'serializable'`)
		writing := testkit.Connect(t, db)
		var committed bool
		watch := func(p Progress) {
			if p.Stage != "beginning to note changes" || p.Note != "" {
				return
			}
			writer, err := writing.Begin(t.Context())
			require.NoError(t, err)
			_, err = writer.Exec(t.Context(), `INSERT INTO audit_log (timestamp, action, status) VALUES (now(), 'late', 'success')`)
			require.NoError(t, err)
			go func() {
				defer func() { committed = writer.Commit(t.Context()) == nil }()
				observer, err := pgx.Connect(t.Context(), db)
				if err != nil {
					return
				}
				defer observer.Close(t.Context()) //nolint:errcheck // only looks
				for waits := false; !waits; {
					err := observer.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'audit_log'::regclass AND mode = 'ShareRowExclusiveLock' AND NOT granted)`).Scan(&waits)
					if err != nil {
						return
					}
				}
			}()
		}
		o := options(db)
		o.Report = watch
		_, err := Run(t.Context(), o)
		require.NoError(t, err)
		require.True(t, committed)
		require.Equal(t, []string{"late"}, testkit.Column[string](t, conn, `SELECT action::text FROM audit_log WHERE action = 'late'`))
	})
}

// The answer to the swap's COMMIT is lost, and the server with it: that is said, and the next run finds out.
func TestSwapCommitUnansweredAndServerGone(t *testing.T) {
	db := testkit.Postgres(t, 18)
	conn := old(t, db)
	before := content(t, conn, "audit_log")
	cutter, err := testkit.StartCutter(t.Context(), testkit.PostgresServerFor(t, 18).Address())
	require.NoError(t, err)
	through, err := cutter.URL(db)
	require.NoError(t, err)
	closed := make(chan error, 1)
	o := options(through)
	o.Report = func(p Progress) {
		if p.Stage == "swapping" {
			cutter.Once(testkit.Cut{Forward: true})
			go func() {
				for cutter.Cuts() == 0 {
					time.Sleep(time.Millisecond)
				}
				closed <- cutter.Close() // after which nobody answers
			}()
		}
	}
	_, err = Run(t.Context(), o)
	require.ErrorContains(t, err, "connect to the database")
	require.NoError(t, <-closed)
	s, err := Run(t.Context(), options(db))
	require.NoError(t, err)
	require.True(t, s.Nothing)
	require.Equal(t, before, content(t, conn, "audit_log"))
}
