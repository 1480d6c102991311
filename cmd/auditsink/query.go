package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"auditsink/config"
	"auditsink/internal/event"
	"auditsink/internal/postgres"
	"auditsink/internal/query"
	"auditsink/internal/server"
	"auditsink/metrics"
)

func newQueryCommand() *cobra.Command {
	q := &asking{instants: map[string]*moment{}}
	c := &cobra.Command{
		Use:   "query",
		Short: "Read events: a page as a table or JSON, or all of a range as NDJSON or CSV",
		Long: "query reads events from the database, as /v1/events does: the newest of the last 24 hours, unless flags say otherwise.\n" +
			"table and json show a page; ndjson and csv write all of the range. In csv, a ' stands before what a spreadsheet would run as a formula.",
		RunE: func(cmd *cobra.Command, _ []string) error { return q.run(cmd) },
	}
	q.flags(c)
	c.AddCommand(newTokenCommand())
	return c
}

// asking is what the flags of `query` say.
type asking struct {
	instants      map[string]*moment // by parameter
	id            int64
	timestamp     string
	organizations []string
	format        string
	json          bool
}

// notes say what the flags do that go by a parameter of the API.
var notes = map[string]string{
	"from":         "events from then on: RFC 3339, or a duration back from now, such as 24h (default: 24 hours before --to)",
	"to":           "events before then, likewise (default: now)",
	"archivedFrom": "events archived from then on, likewise",
	"archivedTo":   "events archived before then, likewise",
	"order":        "asc, oldest first, or desc",
	"limit":        "events at most (default: 100 of a page; all of the range in ndjson and csv)",
	"cursor":       "go on after the page that named this cursor; all else as for that page, with its --from and --to",
	"count":        "also count the events of the whole range",
}

func (q *asking) flags(c *cobra.Command) {
	flags := c.Flags()
	for _, name := range query.Parameters() {
		note := notes[name]
		if note == "" {
			note = "exactly this " + strings.ReplaceAll(flagOf(name), "-", " ")
		}
		switch name {
		case "format":
		case "from", "to", "archivedFrom", "archivedTo":
			q.instants[name] = &moment{}
			flags.Var(q.instants[name], flagOf(name), note)
		case "count":
			flags.Bool(name, false, note)
		case "limit":
			flags.Int(name, 0, note)
		default:
			flags.String(flagOf(name), "", note)
		}
	}
	flags.Int64Var(&q.id, "id", 0, "the one event with this ID")
	flags.StringVar(&q.timestamp, "timestamp", "", "with --id, that event's timestamp: spares looking through all partitions")
	flags.StringArrayVar(&q.organizations, "organization", nil, "see no more than a token of this organization does; may be given more than once (default: everything)")
	flags.StringVar(&q.format, "format", "table", "table, json, ndjson or csv")
	flags.BoolVar(&q.json, "json", false, "the same as --format json")
}

// flagOf names the flag of a parameter.
func flagOf(parameter string) string {
	var flag strings.Builder
	for _, r := range parameter {
		if unicode.IsUpper(r) {
			flag.WriteByte('-')
		}
		flag.WriteRune(unicode.ToLower(r))
	}
	return flag.String()
}

// values are the parameters that the flags give.
func (q *asking) values(c *cobra.Command) url.Values {
	flags, values := c.Flags(), url.Values{}
	for _, name := range query.Parameters() {
		if at, ok := q.instants[name]; ok && flags.Changed(flagOf(name)) {
			values.Set(name, at.Format(time.RFC3339Nano))
		} else if name != "format" && flags.Changed(flagOf(name)) {
			values.Set(name, flags.Lookup(flagOf(name)).Value.String())
		}
	}
	return values
}

func (q *asking) run(cmd *cobra.Command) error {
	if q.json && !cmd.Flags().Changed("format") {
		q.format = string(query.JSON)
	}
	if !slices.Contains([]string{"table", "json", "ndjson", "csv"}, q.format) || q.json && q.format != "json" {
		return &usageError{errors.New("--format is one of table, json, ndjson and csv; --json is --format json")}
	}
	format := query.Format(q.format)
	if q.format == "table" {
		format = query.JSON // a page
	}
	values := q.values(cmd)
	single := cmd.Flags().Changed("id")
	if single && len(values) > 0 || !single && cmd.Flags().Changed("timestamp") {
		return &usageError{errors.New("--id goes with --timestamp, --organization and --format alone, and --timestamp with --id")}
	}
	scope := query.Everything()
	if cmd.Flags().Changed("organization") {
		if slices.Contains(q.organizations, "") { // a variable that isn't set, say: it would look as if there were no events
			return &usageError{errors.New("--organization: it is empty: leave it out, or name one")}
		}
		scope = query.Organizations(q.organizations...)
	}
	question, err := query.ParseQuestion(values, format, time.Now())
	if err != nil {
		return asFlag(err)
	}
	var at time.Time
	if cmd.Flags().Changed("timestamp") {
		if at, err = query.ParseInstant(q.timestamp); err != nil {
			return &usageError{fmt.Errorf("--timestamp: %w", err)}
		}
	}
	cfg, pool, err := openChecked(cmd.Context(), func(cfg config.Config) config.Secret { return cfg.PostgresURL })
	if err != nil {
		return err
	}
	defer pool.Close()
	reader := newReader(cfg, pool, nil, metrics.New(version, event.Reasons()), zap.NewNop())
	defer reader.Close()
	if single {
		err = q.one(cmd.Context(), cmd.OutOrStdout(), reader, scope, at)
	} else {
		err = q.many(cmd.Context(), cmd.OutOrStdout(), reader, scope, question)
	}
	return asFlag(postgres.Explain(err))
}

// asFlag makes the error of a parameter that of its flag: a wrong command line.
func asFlag(err error) error {
	if invalid, ok := errors.AsType[*query.InvalidError](err); ok {
		return &usageError{fmt.Errorf("--%s: %s", flagOf(invalid.Parameter), invalid.Problem)}
	}
	return err
}

// one shows a single event.
func (q *asking) one(ctx context.Context, out io.Writer, reader *query.Reader, scope query.Scope, at time.Time) error {
	e, err := reader.Event(ctx, scope, q.id, at)
	if err != nil {
		return fmt.Errorf("read event %d: %w", q.id, err)
	}
	switch q.format {
	case "table":
		return printEvents(out, []query.Event{e})
	case string(query.JSON):
		return printJSON(out, e)
	default:
		format := query.Format(q.format)
		text, err := format.Append([]byte(format.Header()), &e)
		if err != nil {
			return err
		}
		_, err = out.Write(text)
		return err
	}
}

// many shows a page, or writes all of a range.
func (q *asking) many(ctx context.Context, out io.Writer, reader *query.Reader, scope query.Scope, question query.Question) error {
	if question.Format != query.JSON {
		_, err := reader.Stream(ctx, scope, question, out)
		return err
	}
	answer, err := reader.Ask(ctx, scope, question)
	if err != nil {
		return err
	}
	if q.format == string(query.JSON) {
		return printJSON(out, answer)
	}
	err = printEvents(out, answer.Events)
	if answer.Count != nil && err == nil {
		more := ""
		if !answer.Count.Exact {
			more = "more than "
		}
		_, err = fmt.Fprintf(out, "\n%s%d events from %s to %s\n", more, answer.Count.Count, answer.From.Format(time.RFC3339Nano), answer.To.Format(time.RFC3339Nano))
	}
	if answer.Next != nil && err == nil {
		_, err = fmt.Fprintf(out, "\nmore follow: --from %s --to %s --cursor %s\n", answer.From.Format(time.RFC3339Nano), answer.To.Format(time.RFC3339Nano), *answer.Next)
	}
	return err
}

func printEvents(out io.Writer, events []query.Event) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tTIMESTAMP\tORGANIZATION\tPRINCIPAL\tACTION\tSTATUS\tRESOURCE\tCLASS\tCORRELATION") //nolint:errcheck // Flush tells
	for i := range events {
		e := &events[i]
		resource := cellText(e.TargetResourceType)
		if e.TargetResourceID != nil {
			resource += " " + cellText(e.TargetResourceID)
		}
		//nolint:errcheck // Flush tells
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", e.ID, cellText(&e.Timestamp), cellText(e.OrganizationID), cellText(e.PrincipalID), cellText(&e.Action),
			e.Status, resource, cellText(e.DataClassification), cellText(e.CorrelationID))
	}
	return w.Flush()
}

// cellText is a text for a terminal, which must not obey what an event holds.
func cellText(text *string) string {
	if text == nil {
		return "-"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, *text)
}

func newTokenCommand() *cobra.Command {
	name, all, asJSON := "", false, false
	var organizations []string
	c := &cobra.Command{
		Use:   "token (--organization NAME … | --all) --name NAME",
		Short: "Make a bearer token for /v1, and the line that lets it in",
		Long: "token makes a bearer token for /v1, and the line of the file AUDITSINK_TOKENS_FILE that lets it in. It is kept nowhere: hand it to whoever is to read.\n" +
			"The file has its SHA-256 only. A worker takes up the changed file by itself.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if all == cmd.Flags().Changed("organization") {
				return &usageError{errors.New("which events may be read? Name organizations, or else give --all")}
			}
			token, line, err := server.NewToken(name, organizations)
			if err != nil {
				return &usageError{err}
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), struct {
					Token string `json:"token"`
					Line  string `json:"line"`
				}{token, line})
			}
			if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s\n\n%s\n", token, line); err != nil {
				return err
			}
			cmd.PrintErrln("note: the first line is the token, shown only now; the last belongs into the file that AUDITSINK_TOKENS_FILE names")
			return nil
		},
	}
	c.Flags().StringArrayVar(&organizations, "organization", nil, "the organization whose events may be read; may be given more than once")
	c.Flags().BoolVar(&all, "all", false, "all events may be read, and what only operators see")
	c.Flags().StringVar(&name, "name", "", "what the log calls whoever has the token")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
