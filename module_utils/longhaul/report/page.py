"""The shell of every HTML page: style sheet, sorting script, icons, and tables. One file, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .figures import DASH
from .svg import Series, esc, legend_mark

CSS = """
:root{color-scheme:light dark;--page:#f5f6f8;--card:#fff;--ink:#18202c;--muted:#5a6677;--rule:#e2e6ec;--grid:#e9ecf1;
--soft:#f3f5f8;
--pass:#14774a;--fail:#bf2339;--invalid:#7a3fc0;--unsure:#95600a;--skip:#5f6b7a;
--pass-bg:#e8f5ee;--fail-bg:#fcebed;--invalid-bg:#f3ecfb;--unsure-bg:#fbf2e0;--skip-bg:#eef0f3;
--k0:#2364c8;--k1:#0d8282;--k2:#b2560d;--k3:#8246bd;--k4:#566273;--k5:#b83673;--floor:#7b8798;--on:#fff}
@media screen and (prefers-color-scheme:dark){:root{--page:#0e1319;--card:#161d26;--ink:#e5e9ef;--muted:#98a4b4;--rule:#293341;
--grid:#232c38;
--soft:#1b232e;--pass:#52c58f;--fail:#ff7c8b;--invalid:#c39dff;--unsure:#eab44c;--skip:#98a4b4;
--pass-bg:#12291f;--fail-bg:#32171d;--invalid-bg:#251b36;--unsure-bg:#2d2412;--skip-bg:#1f2833;
--k0:#6ea4f7;--k1:#44bdbd;--k2:#ee9a4d;--k3:#b78af0;--k4:#a3afbf;--k5:#f07cb0;--floor:#8290a3;--on:#0e1319}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,
"Liberation Sans",sans-serif;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
main{max-width:1200px;margin:0 auto;padding:32px 24px 56px}
h1{font-size:27px;line-height:1.2;margin:2px 0 6px;font-weight:650;letter-spacing:-.012em}
h2{font-size:21px;line-height:1.25;margin:0;font-weight:650;letter-spacing:-.008em}
h3{font-size:15.5px;line-height:1.35;margin:0;font-weight:650}
p{margin:0}
.eyebrow{color:var(--muted);font-size:12px;font-weight:600;letter-spacing:.07em;text-transform:uppercase}
.sub,.muted{color:var(--muted)}
.sub{font-size:13.5px}
code,.mono{font:12.5px/1.4 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
a{color:var(--k0);text-decoration:none}a:hover{text-decoration:underline}
.card{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:18px 20px;margin-top:16px;
min-width:0}
.head{display:flex;flex-wrap:wrap;gap:2px 12px;align-items:baseline;justify-content:space-between;margin-bottom:10px}
.host{margin-top:44px;scroll-margin-top:12px}
.fold{margin-top:14px}.fold>details[open]{margin-bottom:40px}.fold .name{font-size:17px;margin-right:8px}
.hosthead{display:flex;flex-wrap:wrap;gap:4px 14px;align-items:baseline;justify-content:space-between}
.banner{border-left:5px solid var(--v);background:var(--vb);border-radius:4px 10px 10px 4px;padding:16px 20px;
margin-top:14px}
.banner .what{display:flex;gap:10px;align-items:center;color:var(--v);font-size:20px;font-weight:700;
letter-spacing:.01em}
.banner .what svg{width:24px;height:24px;flex:none}
.banner .say{margin-top:2px}
.why{list-style:none;margin:12px 0 0;padding:0;display:grid;gap:0}
.why li{display:grid;grid-template-columns:172px minmax(0,1fr);gap:2px 14px;padding:8px 0;
border-top:1px solid color-mix(in srgb,var(--v) 22%,transparent)}
.why .where{color:var(--muted);font-size:13px;padding-top:1px}
.why .more{display:block;margin-top:4px}.why .r{display:block}.why .r+.r{margin-top:5px}
.why code{color:var(--muted);margin-left:4px;white-space:nowrap}
.v-PASS{--v:var(--pass);--vb:var(--pass-bg)}.v-FAIL{--v:var(--fail);--vb:var(--fail-bg)}
.v-INVALID{--v:var(--invalid);--vb:var(--invalid-bg)}
.v-INCONCLUSIVE{--v:var(--unsure);--vb:var(--unsure-bg)}.v-NOTRUN{--v:var(--skip);--vb:var(--skip-bg)}
.chip{display:inline-flex;gap:5px;align-items:center;color:var(--v);background:var(--vb);border-radius:5px;
padding:1px 8px 1px 6px;
font-size:12px;font-weight:650;line-height:1.55;white-space:nowrap;letter-spacing:.01em}
.why .chip{background:var(--card)}
.chip svg{width:13px;height:13px;flex:none}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(158px,1fr));gap:1px;background:var(--rule);
border:1px solid var(--rule);
border-radius:10px;overflow:hidden;margin-top:16px}
.tile{background:var(--card);padding:13px 18px 14px}
.tile .k{color:var(--muted);font-size:12.5px}.tile .n{font-size:22px;font-weight:600;line-height:1.3;
letter-spacing:-.01em;white-space:nowrap}
.tile .d{color:var(--muted);font-size:12.5px;line-height:1.35}
.grid2{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:16px;margin-top:16px}.grid2 .card{margin-top:0}
.wide{grid-column:1/-1}
.lone{grid-column:1/-1}.lone svg.plot{max-width:580px}
.small4{margin-top:12px;display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:14px 18px}
.small4 .cap{font-size:13px;font-weight:600}.small4 .cap .muted{font-weight:400}
figure{margin:0}figcaption .sub{margin-top:1px}
.legend{display:flex;flex-wrap:wrap;gap:3px 16px;margin:8px 0 2px;font-size:13px;color:var(--muted)}
.legend span{display:inline-flex;gap:6px;align-items:center}.key{width:28px;height:16px;flex:none}
.swatch{width:14px;height:12px;border-radius:2px;display:inline-block;flex:none}
svg.plot{display:block;width:100%;height:auto;overflow:visible;margin-top:6px}
svg text{fill:var(--ink);font-size:12px}
svg .tick,svg .title,svg .muted{fill:var(--muted)}svg .small text{font-size:11px}svg.small text{font-size:11px}
svg .value{font-size:11.5px;paint-order:stroke;stroke:var(--card);stroke-width:4px;stroke-linejoin:round}
svg .grid{stroke:var(--grid);stroke-width:1}svg .axis{stroke:var(--floor);stroke-width:1;opacity:.65}
.k0{--c:var(--k0)}.k1{--c:var(--k1)}.k2{--c:var(--k2)}.k3{--c:var(--k3)}.k4{--c:var(--k4)}.k5{--c:var(--k5)}
.k9{--c:var(--floor)}
svg .line{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
svg .computed{fill:none;stroke:var(--floor);stroke-width:1.6;stroke-dasharray:5 4}
svg .whisker{fill:none;stroke:var(--c);stroke-width:1.3;opacity:.75}
svg .area{fill:var(--c);opacity:.16}
.mark .dot{fill:var(--c);stroke:var(--card);stroke-width:1.5}.mark.fail .dot{fill:var(--fail)}
.mark.unsure .dot{fill:var(--card);stroke:var(--unsure);stroke-width:2}
.mark .ring{fill:url(#hatch);stroke:var(--invalid);stroke-width:1.4;stroke-dasharray:2.5 2}.mark .cross{fill:none;
stroke:var(--invalid);stroke-width:1.6}
svg .cell0{fill:var(--soft)}svg .cell{fill:var(--k0)}svg .none{fill:url(#dots)}svg .in{font-size:12px;font-weight:600}
svg .in.hi{fill:var(--on)}svg .in.zero{fill:var(--fail)}
svg .strong{font-weight:600}svg .runs{fill:var(--k0)}svg .waits{fill:url(#wait);stroke:var(--k2);stroke-width:1}
svg .struck{text-decoration:line-through;fill:var(--invalid)}
.hatch{stroke:var(--invalid);stroke-width:1.1;opacity:.55}.waith{stroke:var(--k2);stroke-width:2;opacity:.6}
.dotd{fill:var(--rule)}
.dev{width:120px;height:18px;vertical-align:middle}
.scroll{overflow-x:auto;margin:0 -20px;padding:0 20px;overscroll-behavior-x:contain}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:13.5px;line-height:1.4;overflow-wrap:normal}
th{font-weight:600;color:var(--muted);font-size:12.5px;text-align:left;vertical-align:bottom;padding:0;
border-bottom:1px solid var(--rule)}
th>button{font:inherit;color:inherit;background:none;border:0;text-align:inherit;
padding:6px 7px 7px}
th>button{cursor:pointer}th>button:hover{color:var(--ink)}th>button:focus-visible{outline:2px solid var(--k0);
outline-offset:-2px;border-radius:4px}
th>button{position:relative}th>button:after{position:absolute;right:9px;bottom:-3px;font-size:8px;line-height:1;
content:""}
th[aria-sort]{color:var(--ink)}th>button:hover:after{content:"\\25B2";opacity:.4}
th[aria-sort=ascending]>button:after{content:"\\25B2";opacity:.9}
th[aria-sort=descending]>button:after{content:"\\25BC";opacity:.9}
td{padding:7px 7px;border-bottom:1px solid var(--rule);vertical-align:top;white-space:nowrap}
td:first-child,th:first-child>button{padding-left:0}td:last-child,th:last-child>button{padding-right:0}
tbody tr:last-child td{border-bottom:0}tbody tr:hover td{background:var(--soft)}
.num{text-align:right}td.t{white-space:normal;min-width:130px}
td s{color:var(--invalid);text-decoration-thickness:1.5px;
background:repeating-linear-gradient(135deg,var(--invalid-bg) 0 4px,transparent 4px 7px);padding:0 3px;
border-radius:3px}
.better{color:var(--pass);font-weight:600}.worse{color:var(--fail);font-weight:600}
.list{margin-top:12px}.card ul{margin:4px 0 0;padding-left:20px}
.note{color:var(--muted);font-size:13px;margin-top:10px}
.flag{border-radius:8px;padding:9px 14px;margin-top:12px;background:var(--unsure-bg);color:var(--ink)}
.flag b{color:var(--unsure)}
details>summary{cursor:pointer;font-weight:650}details>summary .sub{font-weight:400}
details[open]>summary{margin-bottom:10px}
h4{font-size:14px;margin:12px 0 2px;font-weight:650}
.needles{columns:330px;column-gap:28px}
.needle{break-inside:avoid;border-top:1px solid var(--rule);scroll-margin-top:12px}
.needle>summary{display:flex;flex-wrap:wrap;gap:2px 8px;align-items:center;font-weight:500;font-size:13.5px;
padding:6px 0;list-style:none}
.needle>summary::-webkit-details-marker{display:none}
.needle>summary:after{content:"\\25B8";margin-left:auto;color:var(--muted)}
.needle[open]>summary:after{content:"\\25BE"}
.needle[open]>summary{margin-bottom:2px}
.needle:target{outline:2px solid var(--k0);outline-offset:3px;border-radius:4px}
.needle .mark{color:var(--v);display:inline-flex}.needle .mark svg{width:15px;height:15px}
.told{margin:0 0 10px;display:grid;gap:5px;font-size:13.5px}
.told+.told{border-top:1px dashed var(--rule);padding-top:8px}
.told div{display:grid;grid-template-columns:72px minmax(0,1fr);gap:10px}.told dt{color:var(--muted)}
.told dd{margin:0;overflow-wrap:anywhere}
.told .got{white-space:pre-wrap;background:var(--soft);border-radius:5px;padding:5px 8px;
font:12.5px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;max-height:230px;overflow:auto}
svg a{cursor:pointer}svg a:hover .cell0,svg a:focus-visible .cell0{stroke:var(--ink);stroke-width:1.5}
.kv{display:grid;grid-template-columns:repeat(auto-fill,minmax(270px,1fr));gap:0 28px;margin:0}
.kv div{display:flex;justify-content:space-between;gap:14px;padding:5px 0;border-bottom:1px solid var(--rule);
font-size:13.5px}
.kv dt{color:var(--muted);overflow-wrap:normal}.kv dd{margin:0;text-align:right}.kv .long{grid-column:1/-1;display:block}
.kv .long dd{text-align:left;font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
footer{margin-top:36px;color:var(--muted);font-size:13px}
.hide{position:absolute;width:0;height:0;overflow:hidden}
@media screen and (max-width:900px){.grid2{grid-template-columns:minmax(0,1fr)}}
@media screen and (max-width:600px){main{padding:20px 14px 40px}.card{padding:14px 14px}.scroll{margin:0 -14px;padding:0 14px}
h1{font-size:23px}h2{font-size:19px}
.why li{grid-template-columns:minmax(0,1fr)}.banner{padding:14px 15px}
.tiles{grid-template-columns:repeat(2,minmax(0,1fr))}.tile{padding:11px 13px}
.told div{grid-template-columns:minmax(0,1fr);gap:0}
.tile .n{font-size:19px}svg.plot text{font-size:17px}svg.plot .value{font-size:15.5px}
svg.plot.small text{font-size:17px}.small4{grid-template-columns:repeat(auto-fill,minmax(138px,1fr))}
.lone svg.plot{max-width:none}svg.heat .in{font-size:16px}
.sticky th:first-child,.sticky td:first-child{position:sticky;left:-14px;background:var(--card);z-index:1;
padding-left:14px;box-shadow:1px 0 0 var(--rule)}}
@media screen and (max-width:600px){svg.plot .opt{display:none}svg.plot .muted,svg.plot .strong{font-size:16px}}
@media print{:root{color-scheme:light}body{background:#fff}main{max-width:none;padding:0 4px}
.card,.banner{break-inside:avoid}
.scroll{overflow:visible;margin:0;padding:0}table{font-size:11px}th{font-size:10.5px}td{padding:5px 3px;white-space:normal}
th>button{padding:4px 3px}.card{padding:14px}td.t{min-width:0}.chip{font-size:10px;padding:1px 4px}.scroll{zoom:.86}}
"""

# Sorts on data-v (a number) where a cell has one, else on its text; empty values stay last in both directions.
JS = """
document.querySelectorAll('table.sortable th').forEach(function(th){
  var b=th.querySelector('button'); if(!b){return;}
  b.addEventListener('click',function(){
    var up=th.getAttribute('aria-sort')!=='ascending', col=th.cellIndex, body=th.closest('table').tBodies[0];
    th.parentNode.querySelectorAll('th').forEach(function(o){o.removeAttribute('aria-sort');});
    th.setAttribute('aria-sort',up?'ascending':'descending');
    var val=function(r){
      var c=r.cells[col],v=c.getAttribute('data-v');
      return v===null?c.textContent.trim().toLowerCase():(v===''?null:Number(v));
    };
    Array.from(body.rows).map(function(r){return [val(r),r];}).sort(function(p,q){
      var a=p[0],z=q[0]; if(a===z){return 0;} if(a===null){return 1;} if(z===null){return -1;}
      var d=typeof a==='number'?a-z:String(a).localeCompare(String(z),undefined,{numeric:true}); return up?d:-d;
    }).forEach(function(p){body.appendChild(p[1]);});
  });
});
// A link to a folded host, or to a needle's answers, opens it and whatever it lies in.
function unfold(){
  var t=location.hash?document.getElementById(location.hash.slice(1)):null; if(!t){return;}
  var d=t.tagName==='DETAILS'?t:t.className.indexOf('fold')!==-1?t.querySelector('details'):null; if(!d){return;}
  for(var p=d;p;p=p.parentElement){if(p.tagName==='DETAILS'){p.open=true;}}
  t.scrollIntoView();
}
window.addEventListener('hashchange',unfold); unfold();
"""

_ICONS = {
    "PASS": '<path d="M7.2 12.6l3.2 3.2 6.6-7.2"/>',
    "FAIL": '<path d="M8.2 8.2l7.6 7.6M15.8 8.2l-7.6 7.6"/>',
    "INVALID": '<path d="M5.8 18.2L18.2 5.8"/>',
    "INCONCLUSIVE": '<path d="M9.4 9.6a2.7 2.7 0 1 1 3.9 2.5c-.9.4-1.3 1-1.3 1.9M12 17.2v.2"/>',
    "NOT RUN": '<path d="M8 12h8"/>',
}


def icon(word: str) -> str:
    """The sign of a verdict; the word always stands beside it."""
    body = _ICONS.get(word, "")
    return (
        '<svg viewBox="0 0 24 24" aria-hidden="true" fill="none" stroke="currentColor" stroke-width="2.2" '
        f'stroke-linecap="round" stroke-linejoin="round"><circle cx="12" cy="12" r="9.6"/>{body}</svg>'
    )


def verdict_class(word: str) -> str:
    """The CSS class that sets a verdict's colours."""
    return "v-" + word.replace(" ", "")


def chip(word: str) -> str:
    """A verdict as a small label."""
    return f'<span class="chip {verdict_class(word)}">{icon(word)}{esc(word)}</span>'


@dataclass(frozen=True)
class Cell:
    """One table cell: safe HTML, and the number it sorts by (``sort`` None with ``number`` True: sorts last)."""

    html: str
    sort: float | None = None
    number: bool = False
    long: bool = False


def number(text: str, value: float | None, struck: bool = False) -> Cell:
    """A right-aligned figure; ``struck``: measured but INVALID, shown struck and hatched, and not sortable as a number."""
    if struck and text != DASH:
        return Cell(f'<s title="INVALID: no result">{esc(text)}</s>', None, True)
    return Cell(esc(text), value, True)


def words(text: object, long: bool = False) -> Cell:
    """A left-aligned text; ``long``: it may take several lines."""
    return Cell(esc(text), long=long)


@dataclass(frozen=True)
class Column:
    """A column: its title, and the unit or meaning shown when the pointer rests on it."""

    title: str
    number: bool = False
    hint: str = ""


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], label: str) -> str:
    """A sortable table in a box that scrolls sideways on a narrow screen."""
    out = [f'<div class="scroll"><table class="sortable sticky" aria-label="{esc(label)}"><thead><tr>']
    for column in columns:
        kind = ' class="num"' if column.number else ""
        hint = f' title="{esc(column.hint)}"' if column.hint else ""
        out.append(f'<th scope="col"{kind}{hint}><button type="button">{esc(column.title)}</button></th>')
    out.append("</tr></thead><tbody>")
    for row in rows:
        out.append("<tr>")
        for cell in row:
            value = f' data-v="{"" if cell.sort is None else repr(cell.sort)}"' if cell.number or cell.sort is not None else ""
            kind = ' class="num"' if cell.number else ' class="t"' if cell.long else ""
            out.append(f"<td{kind}{value}>{cell.html}</td>")
        out.append("</tr>")
    out.append("</tbody></table></div>")
    return "".join(out)


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values, in as many columns as the width allows; long values come last and take a line of their own."""
    ordered = sorted(pairs, key=lambda pair: len(pair[1]) > 40)
    inner = ""
    for name, value in ordered:
        kind = ' class="long"' if len(value) > 40 else ""
        inner += f"<div{kind}><dt>{esc(name)}</dt><dd>{esc(value)}</dd></div>"
    return f'<dl class="kv">{inner}</dl>'


def page(title: str, body: str) -> str:
    """A whole document. Its content security policy forbids every fetch; it is also well-formed XML."""
    patterns = (
        '<svg class="hide" aria-hidden="true"><defs>'
        '<pattern id="hatch" width="4" height="4" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<line class="hatch" x1="0" y1="0" x2="0" y2="4"/></pattern>'
        '<pattern id="wait" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<line class="waith" x1="0" y1="0" x2="0" y2="6"/></pattern>'
        '<pattern id="dots" width="6" height="6" patternUnits="userSpaceOnUse">'
        '<circle class="dotd" cx="2" cy="2" r="1"/></pattern>'
        "</defs></svg>"
    )
    scheme = '<meta name="color-scheme" content="light dark"/>'
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"{scheme}\n<title>{esc(title)}</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n{patterns}\n<main>\n{body}\n</main>\n"
        f"<script>{JS}</script>\n</body>\n</html>\n"
    )


def figure(title: str, note: str, drawing: str, series: Sequence[Series] = (), *, wide: bool = False, legend: str = "") -> str:
    """A drawing with its title, a sentence on how to read it, and the legend of its series; nothing where there is no drawing."""
    if not drawing:
        return ""
    keys = legend
    kinds = {m.kind for s in series if not s.computed for m in s.marks}
    for one in series:
        if one.marks and (len([s for s in series if s.marks]) > 1):
            keys += f"<span>{legend_mark('pass', one.index, one.computed)}{esc(one.name)}</span>"
    names = {"fail": "FAIL", "unsure": "INCONCLUSIVE: not proven", "void": "INVALID: no result"}
    for kind, name in names.items():
        if kind in kinds:
            keys += f"<span>{legend_mark(kind, 0)}{esc(name)}</span>"
    keys = f'<div class="legend">{keys}</div>' if keys else ""
    kind = "card wide" if wide else "card"
    caption = f'<figcaption><h3>{esc(title)}</h3><p class="sub">{esc(note)}</p></figcaption>'
    return f'<figure class="{kind}">{caption}{keys}{drawing}</figure>'
