package convert

import (
	"errors"
	"testing"
	"time"

	"auditsink/internal/testkit"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
)

// Who takes ids from the sequence beforehand, as object mappers do, waits for no lock of the table: none is given twice, though some calls fail at the swap.
func TestNoIDIsGivenTwice(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		for _, identity := range []string{"", `ALTER TABLE audit_log ALTER id DROP DEFAULT; DROP SEQUENCE audit_log_id_seq; ALTER TABLE audit_log ALTER id ADD GENERATED ALWAYS AS IDENTITY (START 7000)`} {
			conn := old(t, db)
			testkit.Exec(t, conn, identity+`; CREATE TABLE given (id bigint NOT NULL)`)
			stop, stopped := make(chan struct{}), make(chan error, 4)
			for range 4 {
				go func() { stopped <- take(t, db, stop) }()
			}
			_, err := Run(t.Context(), options(db))
			require.NoError(t, err)
			taken := testkit.Column[int](t, conn, `SELECT count(*) FROM given`)[0]
			for testkit.Column[int](t, conn, `SELECT count(*) FROM given`)[0] < taken+100 { // of the new one
			}
			close(stop)
			for range 4 {
				require.NoError(t, <-stopped)
			}
			require.Empty(t, testkit.Column[int64](t, conn, `SELECT id FROM given GROUP BY id HAVING count(*) > 1`))
			testkit.Exec(t, conn, `DROP SCHEMA public, audit_replaced CASCADE; CREATE SCHEMA public`)
		}
	})
}

func take(t *testing.T, db string, stop <-chan struct{}) error {
	conn, err := pgx.Connect(t.Context(), as(db, "postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(t.Context()) //nolint:errcheck // nothing depends on it
	for {
		select {
		case <-stop:
			return nil
		case <-time.After(breath):
		}
		_, err := conn.Exec(t.Context(), `INSERT INTO given SELECT nextval('audit_log_id_seq')`)
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "2200H" { // sequence_generator_limit_exceeded
			continue
		}
		if err != nil {
			return err
		}
	}
}
