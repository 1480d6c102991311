package performance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	topStatements = 10
	// candidates are those whose texts are looked at for the top: most of what is left out are utility statements, of which there are few.
	candidates = 300
	// textLength is how much of a text is told, in bytes.
	textLength = 400
)

// statementCounts is pg_stat_statements at one moment, by queryid, of all users.
type statementCounts struct {
	counted
	by     map[int64]Statement // without texts
	report *Statements         // since the look before
}

// countStatements reads pg_stat_statements (Postgres, appendix F.32), which is never reset. Statements of other users show only to members of
// pg_read_all_stats.
func countStatements(ctx context.Context, tx pgx.Tx, now time.Time, before *statementCounts, slow time.Duration) (*statementCounts, error) {
	var schema string
	err := tx.QueryRow(ctx, `SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'pg_stat_statements'`).Scan(&schema)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, errWithout{errors.New("pg_stat_statements isn't installed: add it to shared_preload_libraries, restart the server, and CREATE EXTENSION pg_stat_statements in this database")}
	}
	if err != nil {
		return nil, fmt.Errorf("look for pg_stat_statements: %w", err)
	}
	var reset *time.Time
	if err := tx.QueryRow(ctx, `SELECT stats_reset FROM `+schema+`.pg_stat_statements_info`).Scan(&reset); err != nil {
		return nil, fmt.Errorf("read pg_stat_statements_info: %w", err)
	}
	s := &statementCounts{counted: counted{at: now, reset: utc(reset)}, by: map[int64]Statement{}}
	type row struct {
		id int64
		Statement
	}
	// false: without the texts, which are in a file that may be large.
	all, err := rowsOf(ctx, tx, "pg_stat_statements", func(r pgx.CollectableRow) (row, error) {
		var one row
		err := r.Scan(&one.id, &one.Calls, &one.Rows, &one.TotalSeconds)
		return one, err
	}, `SELECT queryid, sum(calls)::bigint, sum(rows)::bigint, sum(total_exec_time) / 1000 FROM `+schema+`.pg_stat_statements(false)
		WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND queryid IS NOT NULL AND toplevel GROUP BY queryid`)
	if err != nil {
		return nil, err
	}
	for _, one := range all {
		s.by[one.id] = one.Statement
	}
	return s, s.compare(ctx, tx, schema, before, slow)
}

// compare makes the report: what was added since the look before.
func (s *statementCounts) compare(ctx context.Context, tx pgx.Tx, schema string, before *statementCounts, slow time.Duration) error {
	since, ok := s.since(countedOf(before))
	grown := map[int64]Statement{}
	for id, one := range s.by {
		if ok {
			was := before.by[id]
			if one.Calls < was.Calls {
				was = Statement{} // it was evicted, and came again
			}
			one.Calls, one.Rows, one.TotalSeconds = one.Calls-was.Calls, one.Rows-was.Rows, one.TotalSeconds-was.TotalSeconds
		}
		if one.Calls > 0 {
			one.ID = strconv.FormatInt(id, 10)
			one.MeanSeconds = one.TotalSeconds / float64(one.Calls)
			one.Slow = one.MeanSeconds >= slow.Seconds()
			grown[id] = one
		}
	}
	s.report = &Statements{Since: since, Top: []Statement{}}
	byTime := slices.SortedFunc(maps.Keys(grown), func(a, b int64) int { return cmp.Compare(grown[b].TotalSeconds, grown[a].TotalSeconds) })
	byTime = byTime[:min(len(byTime), candidates)]
	// Postgres normalizes what it plans. The text of a utility statement may hold literals, so only those that are planned are told.
	var id int64
	var text string
	rows, err := tx.Query(ctx, `SELECT DISTINCT ON (queryid) queryid, left(query, 4000) FROM `+schema+`.pg_stat_statements
		WHERE queryid = ANY ($1::bigint[]) AND query ~* '^[\s(]*(select|insert|update|delete|merge|with|values|table)\M'`, byTime)
	if err != nil {
		return fmt.Errorf("read the texts of pg_stat_statements: %w", err)
	}
	if _, err = pgx.ForEachRow(rows, []any{&id, &text}, func() error {
		one := grown[id]
		one.Text = scrub(text)
		grown[id] = one
		return nil
	}); err != nil {
		return fmt.Errorf("read the texts of pg_stat_statements: %w", err)
	}
	for _, id := range byTime {
		one := grown[id]
		if one.Text == "" {
			continue
		}
		if len(s.report.Top) < topStatements {
			s.report.Top = append(s.report.Top, one)
		}
		if one.Slow {
			s.report.Slow++
		}
	}
	return nil
}

// scrub takes out of a statement whatever could be a value: comments, quoted strings and numbers. Postgres puts $1 for constants; it keeps comments, and the
// constants of what it doesn't plan (SELECT … INTO) and of an entry that was evicted while it was planned.
func scrub(sql string) string {
	var b strings.Builder
	word := false // within an identifier, or a parameter
	for i := 0; i < len(sql); {
		rest := sql[i:]
		c := rest[0]
		n := 1
		switch {
		case strings.HasPrefix(rest, "--"):
			n = lengthTo(rest, 2, "\n")
			b.WriteByte(' ')
		case strings.HasPrefix(rest, "/*"):
			n = lengthOfComment(rest)
			b.WriteByte(' ')
		case c == '\'':
			n = lengthOfString(rest, i > 0 && (sql[i-1] == 'e' || sql[i-1] == 'E'))
			b.WriteString("'…'")
		case c == '"':
			n = lengthTo(rest, 1, `"`)
			b.WriteString(rest[:n])
		case c == '$' && !word && !digit(next(rest)):
			if end := strings.IndexByte(rest[1:], '$'); end >= 0 {
				n = lengthTo(rest, end+2, rest[:end+2])
				b.WriteString("'…'")
			} else {
				b.WriteByte(c)
			}
		case digit(c) && !word:
			for n < len(rest) && (letter(rest[n]) || digit(rest[n]) || rest[n] == '.') {
				n++
			}
			b.WriteByte('?')
		case c == ' ' || c == '\n' || c == '\t' || c == '\r':
			b.WriteByte(' ')
		default:
			b.WriteByte(c)
		}
		word = n == 1 && (letter(c) || c == '$' || word && digit(c))
		i += n
	}
	text := strings.Join(strings.Fields(b.String()), " ")
	if len(text) > textLength {
		text = strings.ToValidUTF8(text[:textLength], "") + "…"
	}
	return text
}

func letter(c byte) bool {
	return c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c >= 0x80
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

func next(text string) byte {
	if len(text) < 2 {
		return 0
	}
	return text[1]
}

// lengthTo is up to and with the next end after from; all of it where there is none.
func lengthTo(text string, from int, end string) int {
	if i := strings.Index(text[from:], end); i >= 0 {
		return from + i + len(end)
	}
	return len(text)
}

// lengthOfComment knows that comments nest.
func lengthOfComment(text string) int {
	depth := 0
	for i := 0; i < len(text); i++ {
		switch {
		case strings.HasPrefix(text[i:], "/*"):
			depth, i = depth+1, i+1
		case strings.HasPrefix(text[i:], "*/"):
			if depth, i = depth-1, i+1; depth == 0 {
				return i + 1
			}
		}
	}
	return len(text)
}

// lengthOfString takes a doubled quote for the end of one and the begin of another, which comes to the same.
func lengthOfString(text string, escapes bool) int {
	for i := 1; i < len(text); i++ {
		switch {
		case text[i] == '\\' && escapes:
			i++
		case text[i] == '\'':
			return i + 1
		}
	}
	return len(text)
}
