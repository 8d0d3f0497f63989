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
