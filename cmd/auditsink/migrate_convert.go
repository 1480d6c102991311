package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"auditsink/config"
	"auditsink/internal/convert"
	"auditsink/internal/postgres"
)

func newConvertCommand() *cobra.Command {
	var dryRun, undo, drop, asJSON bool
	o := convert.Options{}
	c := &cobra.Command{
		Use:   "convert",
		Short: "Make the plain audit_log of the replaced system auditsink's, while it is read and written",
		Long: "Make the plain audit_log of the replaced system auditsink's, while it is read and written.\n\n" +
			"The new tables are filled beside the old one, compared with it, and put in its place within a second. Stopped at any point, the same command goes on where it stood;\n" +
			"--rollback, until then, removes what was made. The replaced table stays in the schema audit_replaced until --drop-replaced.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Batch < 1 || o.Pause < 0 {
				return &usageError{errors.New("--batch must be at least 1, and --pause not negative")}
			}
			if dryRun && undo || dryRun && drop || undo && drop {
				return &usageError{errors.New("only one of --dry-run, --rollback and --drop-replaced")}
			}
			cfg, err := config.Load(config.Postgres)
			if err != nil {
				return err
			}
			pool, err := openDatabase(cmd.Context(), cfg, maintenanceURL(cfg))
			if err != nil {
				return err
			}
			pool.Close()
			o.URL, o.Ahead, o.Indexes = sslURL(cfg), cfg.PartitionAhead, choice(cfg)
			show := newConvertProgress(cmd.ErrOrStderr())
			o.Report = show.report
			defer show.screen.clear()
			var result any
			var text string
			switch {
			case dryRun:
				result, text, err = dryConvert(cmd.Context(), o)
			case undo:
				err = convert.Rollback(cmd.Context(), o)
				result, text = struct {
					RolledBack bool `json:"rolled_back"`
				}{true}, "rolled back: the old table is as it was\n"
			case drop:
				result, text, err = dropReplaced(cmd.Context(), o)
			default:
				result, text, err = runConvert(cmd.Context(), o)
			}
			show.screen.clear()
			if err != nil {
				return explainConvert(err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), result)
			}
			_, err = io.WriteString(cmd.OutOrStdout(), text)
			return err
		},
	}
	f := c.Flags()
	f.BoolVar(&dryRun, "dry-run", false, "say what would be done, or what is in the way; change nothing")
	f.BoolVar(&o.SetAside, "set-aside", false, "move rows whose timestamp no partition is made for (before 1970, more than 48 hours ahead) to audit_log_set_aside")
	f.BoolVar(&undo, "rollback", false, "remove all that an unfinished conversion has made")
	f.BoolVar(&drop, "drop-replaced", false, "drop the replaced table, after comparing it once more with what was put on record")
	f.IntVar(&o.Batch, "batch", 20000, "rows that one transaction copies")
	f.DurationVar(&o.Pause, "pause", 0, "rest after each batch, such as 200ms, where the database has other work to do")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func dryConvert(ctx context.Context, o convert.Options) (any, string, error) {
	plan, err := convert.Check(ctx, o)
	if err != nil {
		return nil, "", err
	}
	if plan.Nothing {
		return plan, nothingToConvert + "\n", nil
	}
	var b strings.Builder
	if plan.Stage != "" {
		fmt.Fprintf(&b, "a conversion has begun already (%s) and would go on\n", plan.Stage)
	}
	fmt.Fprintf(&b, "%d rows", plan.Rows)
	if plan.Months > 0 {
		fmt.Fprintf(&b, " of %d months, %s to %s,", plan.Months, plan.First.Format("2006-01"), plan.Last.Format("2006-01"))
	}
	fmt.Fprintf(&b, " would be converted; %d of them would be set aside; about %d MB are needed beside the old table\n", plan.SetAside, (plan.Bytes+999_999)/1_000_000)
	for _, note := range plan.Notes {
		fmt.Fprintln(&b, "note:", note)
	}
	return plan, b.String(), nil
}

const nothingToConvert = "nothing to convert: audit_log is auditsink's"

func runConvert(ctx context.Context, o convert.Options) (any, string, error) {
	s, err := convert.Run(ctx, o)
	if err != nil {
		return nil, "", err
	}
	text := fmt.Sprintf("converted %d rows of %d months in %.1f s; readers and writers were kept out for %.0f ms\n", s.Rows, s.Months, s.Seconds, s.LockSeconds*1000)
	if s.SetAside > 0 {
		text += fmt.Sprintf("%d of them are in audit_log_set_aside, since no partition is made for their timestamps\n", s.SetAside)
	}
	if s.Nothing {
		text = nothingToConvert + "\n"
	}
	if s.Replaced {
		text += "the replaced table is kept in the schema audit_replaced; once you are sure: auditsink migrate convert --drop-replaced\n"
	}
	return s, text, nil
}

func dropReplaced(ctx context.Context, o convert.Options) (any, string, error) {
	d, err := convert.DropReplaced(ctx, o)
	return d, fmt.Sprintf("dropped the replaced table: its %d rows of %d months were what was put on record when they were converted\n", d.Rows, d.Months), err
}

// explainConvert makes what stays until somebody changes something a matter of usage.
func explainConvert(err error) error {
	var refusal *convert.Refusal
	if errors.As(err, &refusal) || errors.Is(err, convert.ErrRollingBack) || errors.Is(err, convert.ErrSwapped) || errors.Is(err, convert.ErrNothing) {
		return &usageError{err}
	}
	return postgres.Explain(err)
}

// convertProgress shows how far a conversion is: often on a terminal, else a line every few seconds and at every new stage.
type convertProgress struct {
	screen *screen
	now    func() time.Time
	began  time.Time // of copying, by this process
	from   int64     // rows that were copied before
	shown  time.Time
	stage  string
}

func newConvertProgress(w io.Writer) *convertProgress {
	return &convertProgress{screen: newScreen(w), now: time.Now}
}

func (p *convertProgress) report(r convert.Progress) {
	now := p.now()
	every := 5 * time.Second
	if p.screen.live {
		every = 200 * time.Millisecond
	}
	if r.Month != "" && p.began.IsZero() {
		p.began, p.from = now, r.Done
	}
	if r.Stage == p.stage && now.Sub(p.shown) < every {
		return
	}
	p.shown, p.stage = now, r.Stage
	p.screen.progress(p.line(now, r))
}

// line is a bar with figures.
func (p *convertProgress) line(now time.Time, r convert.Progress) string {
	parts := []string{r.Stage}
	if r.Month != "" {
		parts[0] += " " + r.Month
	}
	if r.Total > 0 && r.Done > 0 {
		const width = 20
		share := min(float64(r.Done)/float64(r.Total), 1)
		full := int(share * width)
		parts = append(parts, fmt.Sprintf("[%s%s] %3.0f %%", strings.Repeat("#", full), strings.Repeat(".", width-full), share*100), fmt.Sprintf("%d of %d rows", r.Done, r.Total))
		if seconds := now.Sub(p.began).Seconds(); r.Month != "" && seconds > 0 && r.Done > p.from {
			rate := float64(r.Done-p.from) / seconds
			left := time.Duration(max(float64(r.Total-r.Done), 0) / rate * float64(time.Second))
			parts = append(parts, fmt.Sprintf("%.0f rows/s", rate), "ETA "+left.Round(time.Second).String())
		}
	}
	if r.Note != "" {
		parts = append(parts, r.Note)
	}
	return strings.Join(parts, " · ")
}
