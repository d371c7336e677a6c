package main

import (
	"bytes"
	"fmt"
	"image/color"
	"os"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

const (
	panelWidth  = 17 * vg.Centimeter
	panelHeight = 8 * vg.Centimeter
	panelPad    = 3 * vg.Millimeter
)

// whoColors are those of a flow's line; its blackout is shaded in the same.
var whoColors = map[string]color.NRGBA{
	still:    {R: 150, G: 150, B: 150, A: 255},
	"godwit": {R: 20, G: 90, B: 180, A: 255},
	"qemu":   {R: 220, G: 110, B: 20, A: 255},
}

// drawTCP draws the first flow of each case: a row for each network, a column for each
// direction. Time zero is the request of a migration.
func drawTCP(path string, runs []tcpRun) error {
	var panels [][]*plot.Plot
	for _, network := range []string{"overlay", "provider"} {
		var row []*plot.Plot
		for _, direction := range flowDirections {
			panel, err := tcpPanel(network, direction, runs)
			if err != nil {
				return err
			}
			row = append(row, panel)
		}
		panels = append(panels, row)
	}
	tiles := draw.Tiles{Rows: len(panels), Cols: len(panels[0]), PadX: vg.Centimeter, PadY: vg.Centimeter, PadTop: panelPad, PadRight: panelPad, PadBottom: panelPad, PadLeft: panelPad}
	canvas := vgsvg.New(panelWidth*vg.Length(tiles.Cols), panelHeight*vg.Length(tiles.Rows))
	for i, row := range plot.Align(panels, tiles, draw.New(canvas)) {
		for j, place := range row {
			panels[i][j].Draw(place)
		}
	}
	var svg bytes.Buffer
	if _, err := canvas.WriteTo(&svg); err != nil {
		return err
	}
	return os.WriteFile(path, svg.Bytes(), 0o644)
}

func tcpPanel(network, direction string, runs []tcpRun) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = network + ", " + direction
	p.X.Label.Text, p.Y.Label.Text = "seconds since the request", "MB/s"
	p.Legend.Top = true
	drawn := map[string]bool{}
	var shades, lines []plot.Plotter
	for i := range runs {
		r := &runs[i]
		if r.Network != network || r.Direction != direction || drawn[r.Who] || len(r.Intervals) == 0 {
			continue
		}
		drawn[r.Who] = true
		line, peak, err := tcpLine(r)
		if err != nil {
			return nil, err
		}
		lines, p.Y.Max = append(lines, line), max(p.Y.Max, peak)
		p.Legend.Add(legend(r), line)
		if r.Migration != nil {
			shades = append(shades, &shade{m: *r.Migration, color: whoColors[r.Who]})
		}
	}
	p.Add(shades...) // under the lines
	p.Add(lines...)
	p.Y.Min, p.Y.Max = 0, p.Y.Max*1.4 // room for the legend
	p.X.Min = -moveAfter.Seconds()
	return p, nil
}

func legend(r *tcpRun) string {
	if r.Migration == nil {
		return "no migration"
	}
	return fmt.Sprintf("%s (blackout %.0f ms, shaded)", r.Who, r.Migration.BlackoutMs)
}

// tcpLine draws a flow in steps, each as long as its interval.
func tcpLine(r *tcpRun) (line *plotter.Line, peak float64, err error) {
	requested := moveAfter.Seconds()
	if r.Migration != nil {
		requested = r.Migration.RequestedAtS
	}
	var points plotter.XYs
	for _, one := range r.Intervals {
		points = append(points, plotter.XY{X: one.AtS - requested, Y: one.MBs}, plotter.XY{X: one.AtS + one.seconds - requested, Y: one.MBs})
		peak = max(peak, one.MBs)
	}
	line, err = plotter.NewLine(points)
	if err == nil {
		line.Color, line.Width = whoColors[r.Who], vg.Points(0.8)
	}
	return line, peak, err
}

// shade marks the time in which no instance ran, over the whole height, and paler
// the time from the request on.
type shade struct {
	m     tcpMigration
	color color.NRGBA
}

// Plot draws it.
func (s *shade) Plot(canvas draw.Canvas, p *plot.Plot) {
	x, _ := p.Transforms(&canvas)
	stopped, resumed := s.m.StoppedAtS-s.m.RequestedAtS, s.m.ResumedAtS-s.m.RequestedAtS
	s.fill(canvas, x(0), x(stopped), 20)
	s.fill(canvas, x(stopped), x(resumed), 130)
}

func (s *shade) fill(canvas draw.Canvas, from, to vg.Length, opacity uint8) {
	pale := s.color
	pale.A = opacity
	canvas.FillPolygon(pale, []vg.Point{
		{X: from, Y: canvas.Min.Y}, {X: to, Y: canvas.Min.Y}, {X: to, Y: canvas.Max.Y}, {X: from, Y: canvas.Max.Y},
	})
}
